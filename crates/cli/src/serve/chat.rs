//! `POST /v1/chat/completions`.

use super::api_error::{ApiError, Body};
use super::chat_reply::{ChatCompletion, ChatEvent, ChatLogprobs, Delta, Embeddings, Head, Role, Spoken};
use super::choices::{Choices, MAX_TOP_LOGPROBS};
use super::openapi::{NameSchema, nothing};
use super::overflow::{self, Lost, Overflow};
use super::prompt::{ChatMessage, Conversation};
use super::replies::Replies;
use super::speaker::{Prompt, Said, Usage};
use super::state::Server;
use super::stream::{Events, Over, StreamOptions, respond};
use axum::Json;
use axum::extract::State;
use axum::http::header::WARNING;
use axum::response::{IntoResponse as _, Response};
use lapidary::generate::Grammar;
use lapidary::layout::TokenId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::block_in_place;
use utoipa::ToSchema;

/// A conversation to be continued.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    messages: Vec<ChatMessage>,
    #[schema(value_type = Option<NameSchema>)]
    model: Option<String>,
    /// Most tokens of the reply. None: as the model's makers say.
    max_completion_tokens: Option<usize>,
    /// The older name of `max_completion_tokens`.
    max_tokens: Option<usize>,
    /// Tells the log-probability of each token of the reply.
    #[serde(default, deserialize_with = "super::input::or_default")]
    logprobs: bool,
    /// With `logprobs`: so many of the most probable tokens in each place too.
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
    /// The reply as it comes, as server-sent events.
    #[serde(default, deserialize_with = "super::input::or_default")]
    stream: bool,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    /// The vectors of what the user said last, of the reply, or of both, as `/v1/embeddings` gives them.
    return_embedding: Option<ReturnEmbedding>,
    /// What happens to a conversation that is too long.
    #[serde(default, deserialize_with = "super::input::or_default")]
    overflow: Overflow,
    #[schema(schema_with = nothing)]
    tools: Option<Value>,
    #[schema(value_type = Option<String>, pattern = "^(none|auto)$")]
    tool_choice: Option<Value>,
    #[schema(schema_with = nothing)]
    functions: Option<Value>,
    #[serde(flatten)]
    choices: Choices,
}

/// What a reply has to follow.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    /// Anything.
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema allows.
    JsonSchema { json_schema: NamedSchema },
}

#[derive(Deserialize, ToSchema)]
struct NamedSchema {
    /// A JSON schema. None: any JSON object.
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
}

#[derive(Deserialize, ToSchema, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum ReturnEmbedding {
    Prompt,
    Completion,
    Both,
}

impl ChatRequest {
    /// # Errors
    /// 400 for what cannot be had.
    fn check(&self) -> Result<(), ApiError> {
        let is_some = |value: &Option<Value>| {
            value.as_ref().is_some_and(|value| !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty()))
        };
        for (name, value) in [("tools", &self.tools), ("functions", &self.functions)] {
            if is_some(value) {
                return Err(ApiError::field(name, "none: this server calls no tools", "some"));
            }
        }
        let choice = self.tool_choice.as_ref().filter(|choice| !choice.is_null());
        if let Some(choice) = choice.filter(|choice| !matches!(choice.as_str(), Some("none" | "auto"))) {
            return Err(ApiError::field("tool_choice", "none", choice));
        }
        if let Some(count) = self.top_logprobs.filter(|count| *count > MAX_TOP_LOGPROBS || !self.logprobs) {
            let expected = format!("at most {MAX_TOP_LOGPROBS}, with logprobs true");
            return Err(ApiError::field("top_logprobs", &expected, count));
        }
        let n = self.choices.num_replies()?;
        if n > 1 && matches!(self.return_embedding, Some(ReturnEmbedding::Completion | ReturnEmbedding::Both)) {
            return Err(ApiError::field("n", "1, with the vector of a reply", n));
        }
        Ok(())
    }

    /// What the user said last, where its vector is asked for.
    fn embedded_text(&self) -> Result<Option<String>, ApiError> {
        if !matches!(self.return_embedding, Some(ReturnEmbedding::Prompt | ReturnEmbedding::Both)) {
            return Ok(None);
        }
        let last = self.messages.iter().rev().find(|message| message.is_from_user());
        let text = last.map(ChatMessage::text).filter(|text| !text.is_empty());
        text.map(Some).ok_or_else(|| ApiError::field("return_embedding", "a text of the user to embed", "none"))
    }

    fn grammar(&self, server: &Server) -> Result<Option<Grammar>, ApiError> {
        let schema = match &self.response_format {
            None | Some(ResponseFormat::Text) => return Ok(None),
            Some(ResponseFormat::JsonObject) => None,
            Some(ResponseFormat::JsonSchema { json_schema }) => json_schema.schema.clone(),
        };
        let schema = schema.unwrap_or_else(|| json!({ "type": "object" }));
        block_in_place(|| server.json_schema(schema)).map(Some)
    }
}

/// What a reply is made with, beside the pieces.
struct Turn {
    server: Arc<Server>,
    head: Head,
    lost: Lost,
    /// The tokens of what the user said, where their vector is asked for.
    embedded: Option<Vec<TokenId>>,
    embeds_reply: bool,
    overflow: Overflow,
}

/// A vector, of how many tokens, and what there was no room for.
type Made = (Vec<f32>, usize, Lost);

/// Continues a conversation
#[utoipa::path(
    post,
    path = "/chat/completions",
    tag = "Chat",
    operation_id = "chat_completions",
    request_body(
        content = ChatRequest,
        example = json!({ "messages": [{ "role": "user", "content": "Why is the sky blue?" }], "max_tokens": 64 }),
    ),
    responses(
        (
            status = 200,
            description = "The reply; with `stream`, events with its pieces, and `[DONE]` behind them",
            content((ChatCompletion = "application/json"), (ChatEvent = "text/event-stream")),
        ),
    ),
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    server.check_model(request.model.as_deref())?;
    request.check()?;
    let (grammar, embedded_text) = (request.grammar(&server)?, request.embedded_text()?);
    request.choices.check(&server)?;
    let max_tokens = request.max_completion_tokens.or(request.max_tokens);
    let n = request.choices.num_replies()?;
    let tokenizer = &server.model.base().tokenizer;
    let embedded = match embedded_text {
        None => None,
        Some(text) => {
            let ids = block_in_place(|| tokenizer.encode(&text)).map_err(lapidary::Error::from)?;
            overflow::check(&server, ids.len(), request.overflow)?;
            Some(ids)
        }
    };
    let mut conversation = Conversation::new(&server, request.messages)?;
    let (ticket, (ids, compressed), lost) =
        overflow::prompt(&server, &mut conversation, (request.overflow, max_tokens, n)).await?;
    let logprobs = request.logprobs.then(|| request.top_logprobs.unwrap_or(0));
    let prompt = Prompt { ids, compressed, max_tokens, logprobs, echo: false, grammar };
    let embeds_reply = matches!(request.return_embedding, Some(ReturnEmbedding::Completion | ReturnEmbedding::Both));
    let replies = Replies::start(&server, ticket, vec![prompt], request.choices).await?;
    let head = Head::new(request.logprobs);
    let overflow = request.overflow;
    let turn = Turn { server, head, lost, embedded, embeds_reply, overflow };
    if request.stream {
        let wants_usage = StreamOptions::wants_usage(request.stream_options.as_ref());
        let warning = turn.lost.warning();
        let mut response = respond(async move |events| {
            tokio::select! {
                result = turn.stream((replies, n), &events, wants_usage) => result,
                () = events.closed() => Err(Over),
            }
        });
        if let Some(warning) = warning {
            response.headers_mut().insert(WARNING, warning);
        }
        return Ok(response);
    }
    let mut response = Json(turn.whole(replies, n).await?).into_response();
    if let Some(warning) = turn.lost.warning() {
        response.headers_mut().insert(WARNING, warning);
    }
    Ok(response)
}

impl Turn {
    async fn embed(&self, ids: Vec<TokenId>, overflow: Overflow) -> Result<Made, ApiError> {
        let num_tokens = ids.len();
        let ticket = self.server.admit(num_tokens)?;
        let (vector, lost) = overflow::embed(&self.server, &ticket, ids, overflow).await?;
        Ok((vector, num_tokens, lost))
    }

    /// The vector of what the user said, while the reply comes.
    async fn of_prompt(&self) -> Result<Option<Made>, ApiError> {
        match &self.embedded {
            Some(ids) => self.embed(ids.clone(), self.overflow).await.map(Some),
            None => Ok(None),
        }
    }

    /// The vector of the reply, if it has any text. A reply that is too long for it is there all the same: it is cut.
    async fn of_reply(&self, text: &str) -> Result<Option<Made>, ApiError> {
        if !self.embeds_reply || text.is_empty() {
            return Ok(None);
        }
        let ids = block_in_place(|| self.server.model.base().tokenizer.encode(text)).map_err(lapidary::Error::from)?;
        let overflow = if self.overflow == Overflow::Error { Overflow::Truncate } else { self.overflow };
        self.embed(ids, overflow).await.map(Some)
    }

    /// The vectors as they are told, with the tokens of everything.
    fn told(&self, made: [Option<Made>; 2], replies: &Replies) -> (Option<Embeddings>, Usage) {
        let (mut lost, mut num_tokens) = (self.lost, 0);
        let [prompt, completion] = made.map(|made| {
            let (vector, tokens, of_vector) = made?;
            lost.add(of_vector);
            num_tokens += tokens;
            Some(vector)
        });
        let is_asked = self.embedded.is_some() || self.embeds_reply;
        let embedding_tokens = is_asked.then_some(num_tokens);
        let usage = Usage { lost: lost.usage(), embedding_tokens, ..replies.usage() };
        (is_asked.then_some(Embeddings { prompt, completion }), usage)
    }

    async fn whole(&self, mut replies: Replies, n: usize) -> Result<ChatCompletion, ApiError> {
        let mut spoken: Vec<Spoken> = (0..n).map(|_| Spoken::default()).collect();
        let hear = async {
            while let Some((index, said)) = replies.next().await? {
                spoken[index].add(said);
            }
            Ok::<(), ApiError>(())
        };
        let (of_prompt, ()) = tokio::try_join!(self.of_prompt(), hear)?;
        let of_reply = self.of_reply(&spoken[0].text).await?;
        let (embeddings, usage) = self.told([of_prompt, of_reply], &replies);
        let choices =
            spoken.into_iter().enumerate().map(|(index, spoken)| self.head.choice(&self.server, index, spoken));
        let mut reply = self.head.completion(&self.server, choices.collect(), Some(usage));
        reply.embeddings = embeddings;
        Ok(reply)
    }

    async fn stream(&self, replies: (Replies, usize), events: &Events, wants_usage: bool) -> Result<(), Over> {
        let mut replies = replies;
        for index in 0..replies.1 {
            let delta = Delta { role: Some(Role::Assistant), content: Some(String::new()) };
            events.send(&self.head.chunk(&self.server, (index, delta), None, None)).await?;
        }
        let (of_prompt, text) = tokio::join!(self.of_prompt(), self.pieces(&mut replies.0, events));
        let made = async |text: &str| Ok([of_prompt?, self.of_reply(text).await?]);
        let made = match made(&text?).await {
            Ok(made) => made,
            Err(error) => return Err(events.fail(&error).await),
        };
        let (embeddings, usage) = self.told(made, &replies.0);
        if embeddings.is_some() {
            events.send(&self.head.last(&self.server, embeddings, None)).await?;
        }
        if wants_usage {
            events.send(&self.head.last(&self.server, None, Some(usage))).await?;
        }
        Ok(())
    }

    /// Sends what the replies say; returns the text of the first.
    async fn pieces(&self, replies: &mut Replies, events: &Events) -> Result<String, Over> {
        let mut first = String::new();
        loop {
            let (index, said) = match replies.next().await {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(first),
                Err(error) => return Err(events.fail(&error).await),
            };
            let (content, tokens, finish) = match said {
                Said::Start | Said::Prompt(..) => continue,
                Said::Piece(piece, tokens) => (Some(piece), tokens, None),
                Said::End(end) => (None, Vec::new(), Some(end.finish)),
            };
            if content.as_ref().is_some_and(String::is_empty) && !self.head.with_logprobs {
                continue;
            }
            if index == 0 {
                first += content.as_deref().unwrap_or_default();
            }
            let logprobs: Option<ChatLogprobs> = self.head.logprobs(&self.server, &tokens);
            let delta = Delta { role: None, content };
            events.send(&self.head.chunk(&self.server, (index, delta), logprobs, finish)).await?;
        }
    }
}
