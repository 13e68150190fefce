//! `POST /v1/completions`, with `echo` and `logprobs` as lm-evaluation-harness asks for them.

use super::api_error::{ApiError, Body};
use super::choices::{Choices, MAX_TOP_LOGPROBS};
use super::input::Input;
use super::openapi::NameSchema;
use super::replies::Replies;
use super::speaker::{Finished, Prompt, Said, Usage};
use super::state::{Server, unix_now};
use super::stream::{Over, StreamOptions, respond};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use lapidary::engine::Token;
use lapidary::layout::TokenId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::task::block_in_place;
use utoipa::ToSchema;

/// As OpenAI has it.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Prompts to be continued.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    prompt: Input,
    #[schema(value_type = Option<NameSchema>)]
    model: Option<String>,
    /// Most tokens of a continuation; 16 unless it says otherwise.
    max_tokens: Option<usize>,
    /// Tells the log-probability of each token, and so many of the most probable in its place.
    #[schema(maximum = 20)]
    logprobs: Option<usize>,
    /// The prompt before the continuation, with its log-probabilities where those are asked for.
    #[serde(default, deserialize_with = "super::input::or_default")]
    echo: bool,
    /// The continuations as they come, as server-sent events.
    #[serde(default, deserialize_with = "super::input::or_default")]
    stream: bool,
    stream_options: Option<StreamOptions>,
    /// None, or an empty one: this server puts nothing between texts.
    #[schema(pattern = "^$")]
    suffix: Option<String>,
    /// As many as `n`.
    #[schema(minimum = 1, maximum = 128)]
    best_of: Option<usize>,
    #[serde(flatten)]
    choices: Choices,
}

/// Continuations, those of one prompt after the other.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion {
    id: String,
    #[schema(pattern = "^text_completion$")]
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// Of the model's weights.
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// A server-sent event.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it names a schema")]
struct CompletionEvent {
    /// A `Completion`, an `ErrorReply` that is the last, or `[DONE]`.
    #[schema(extensions(("x-content-schema" = json!({ "$ref": "#/components/schemas/Completion" }))))]
    data: String,
}

#[derive(Serialize, ToSchema)]
struct CompletionChoice {
    /// Continuation `i` of prompt `p` has `p * n + i`.
    index: usize,
    text: String,
    /// Where they are asked for.
    logprobs: Option<Logprobs>,
    /// Null in pieces of one that goes on.
    finish_reason: Option<Finished>,
}

/// Of the tokens of a text, side by side.
#[derive(Default, Serialize, ToSchema)]
struct Logprobs {
    tokens: Vec<String>,
    /// Null for the first token of a prompt.
    token_logprobs: Vec<Option<f64>>,
    /// For each token, spelled, the most probable in its place.
    #[schema(value_type = Vec<Option<BTreeMap<String, f64>>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Characters before each token.
    text_offset: Vec<usize>,
}

impl CompletionRequest {
    fn check(&self) -> Result<(), ApiError> {
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::field("suffix", "none", "some"));
        }
        let n = self.choices.num_replies()?;
        if let Some(best_of) = self.best_of.filter(|best_of| *best_of != n) {
            return Err(ApiError::field("best_of", "as many as n", best_of));
        }
        if let Some(count) = self.logprobs.filter(|count| *count > MAX_TOP_LOGPROBS) {
            return Err(ApiError::field("logprobs", &format!("at most {MAX_TOP_LOGPROBS}"), count));
        }
        Ok(())
    }

    fn prompt(&self, ids: Vec<TokenId>) -> Prompt {
        Prompt {
            ids,
            compressed: Vec::new(),
            max_tokens: Some(self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            logprobs: self.logprobs,
            echo: self.echo,
            grammar: None,
        }
    }
}

/// What all chunks of a reply have.
struct Head {
    id: String,
    created: u64,
}

impl Head {
    fn completion(&self, server: &Server, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: server.name.clone(),
            system_fingerprint: server.model.fingerprint().into_owned(),
            choices,
            usage,
        }
    }
}

/// Continues texts
#[utoipa::path(
    post,
    path = "/completions",
    tag = "Chat",
    operation_id = "completions",
    request_body(
        content = CompletionRequest,
        example = json!({ "prompt": "The capital of France is", "max_tokens": 16 }),
    ),
    responses(
        (
            status = 200,
            description = "The continuations; with `stream`, events with their pieces, and `[DONE]` behind them",
            content((Completion = "application/json"), (CompletionEvent = "text/event-stream")),
        ),
    ),
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(mut request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    server.check_model(request.model.as_deref())?;
    request.check()?;
    request.choices.check(&server)?;
    let prompts = std::mem::replace(&mut request.prompt, Input::Ids(Vec::new()));
    let prompts = block_in_place(|| prompts.ids(&server, "prompt", |text| server.model.prompt_ids(text)))?;
    let (n, limit) = (request.choices.num_replies()?, server.limits.inputs);
    if prompts.is_empty() || prompts.len().saturating_mul(n) > limit {
        let expected = format!("1 to {limit} prompts, or replies where there are several to each");
        return Err(ApiError::field("prompt", &expected, prompts.len().saturating_mul(n)));
    }
    // Each reply is a row of its own.
    let ticket = server.admit(prompts.iter().map(Vec::len).sum::<usize>().saturating_mul(n))?;
    let head = Head { id: format!("cmpl-{:032x}", rand::random::<u128>()), created: unix_now() };
    let with_logprobs = request.logprobs.is_some();
    let prompts: Vec<Prompt> = prompts.into_iter().map(|ids| request.prompt(ids)).collect();
    let num_choices = prompts.len() * n;
    let mut replies = Replies::start(&server, ticket, prompts, request.choices).await?;
    if !request.stream {
        let mut choices: Vec<Pieces> = (0..num_choices).map(|_| Pieces::default()).collect();
        while let Some((index, said)) = replies.next().await? {
            choices[index].add(&server, said);
        }
        let choices = choices.into_iter().enumerate().map(|(index, pieces)| pieces.choice(index, with_logprobs));
        return Ok(Json(head.completion(&server, choices.collect(), Some(replies.usage()))).into_response());
    }
    let wants_usage = StreamOptions::wants_usage(request.stream_options.as_ref());
    Ok(respond(async move |events| {
        let mut offsets = vec![0; num_choices];
        loop {
            let next = tokio::select! {
                next = replies.next() => next,
                () = events.closed() => return Err(Over),
            };
            let Some((index, said)) = (match next {
                Ok(next) => next,
                Err(error) => return Err(events.fail(&error).await),
            }) else {
                break;
            };
            let mut pieces = Pieces { offset: offsets[index], ..Pieces::default() };
            pieces.add(&server, said);
            offsets[index] = pieces.offset;
            if !pieces.is_empty() {
                events.send(&head.completion(&server, vec![pieces.choice(index, with_logprobs)], None)).await?;
            }
        }
        if wants_usage {
            events.send(&head.completion(&server, Vec::new(), Some(replies.usage()))).await?;
        }
        Ok(())
    }))
}

/// What has come of a continuation.
#[derive(Default)]
struct Pieces {
    text: String,
    logprobs: Logprobs,
    finish: Option<Finished>,
    /// Characters of the text so far.
    offset: usize,
}

impl Pieces {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.tokens.is_empty() && self.finish.is_none()
    }

    fn add(&mut self, server: &Server, said: Said) {
        match said {
            Said::Start => {}
            Said::Prompt(piece, token) => self.piece(server, &piece, &[token]),
            Said::Piece(piece, tokens) => self.piece(server, &piece, &tokens),
            Said::End(end) => self.finish = Some(end.finish),
        }
    }

    fn piece(&mut self, server: &Server, piece: &str, tokens: &[Token]) {
        tokens.iter().for_each(|token| self.token(server, token));
        self.text += piece;
        self.offset += piece.chars().count();
    }

    fn token(&mut self, server: &Server, token: &Token) {
        let decode = |id: TokenId| server.model.base().tokenizer.decode(&[id], false).unwrap_or_default();
        let text = decode(token.id);
        let logprobs = &mut self.logprobs;
        logprobs.text_offset.push(self.offset);
        // The same number in both places, to the last digit: who compares them finds out whether it is the most probable.
        let logprob = token.logprob.map(f64::from);
        logprobs.token_logprobs.push(logprob);
        logprobs.top_logprobs.push(match logprob {
            None => None,
            Some(logprob) => {
                // Of tokens that are spelled alike, as parts of characters are, the ids tell the others apart.
                let mut top: Map<String, Value> = Map::new();
                top.insert(text.clone(), json!(logprob));
                for (id, logprob) in token.top.iter().filter(|(id, _)| *id != token.id) {
                    let text = decode(*id);
                    let name = if top.contains_key(&text) { format!("token_id:{id}") } else { text };
                    top.insert(name, json!(f64::from(*logprob)));
                }
                Some(top)
            }
        });
        logprobs.tokens.push(text);
    }

    fn choice(self, index: usize, with_logprobs: bool) -> CompletionChoice {
        let logprobs = with_logprobs.then_some(self.logprobs);
        CompletionChoice { index, text: self.text, logprobs, finish_reason: self.finish }
    }
}
