//! `POST /v1/completions`, with `echo` and `logprobs` as lm-evaluation-harness asks for them.

use super::api_error::{ApiError, Body};
use super::input::Input;
use super::speaker::{Choices, MAX_TOP_LOGPROBS, Prompt, Said, Speaker};
use super::state::Server;
use axum::Json;
use axum::extract::State;
use futures_util::future::try_join_all;
use lapidary::engine::Token;
use lapidary::layout::TokenId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::task::block_in_place;

/// As OpenAI has it.
const DEFAULT_MAX_TOKENS: usize = 16;

#[derive(Deserialize)]
pub(crate) struct CompletionRequest {
    prompt: Input,
    model: Option<String>,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
    #[serde(default)]
    echo: bool,
    #[serde(default)]
    stream: bool,
    suffix: Option<String>,
    best_of: Option<usize>,
    #[serde(flatten)]
    choices: Choices,
}

impl CompletionRequest {
    fn check(&self) -> Result<(), ApiError> {
        if self.stream {
            return Err(ApiError::field("stream", "false; /v1/chat/completions streams", true));
        }
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::field("suffix", "none", "some"));
        }
        if let Some(best_of) = self.best_of.filter(|best_of| *best_of > 1) {
            return Err(ApiError::field("best_of", "1", best_of));
        }
        if let Some(count) = self.logprobs.filter(|count| *count > MAX_TOP_LOGPROBS) {
            return Err(ApiError::field("logprobs", &format!("at most {MAX_TOP_LOGPROBS}"), count));
        }
        Ok(())
    }
}

pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(request): Body<CompletionRequest>,
) -> Result<Json<Value>, ApiError> {
    server.check_model(request.model.as_deref())?;
    request.check()?;
    request.choices.check()?;
    let CompletionRequest { prompt, max_tokens, logprobs, echo, choices, .. } = request;
    let prompts = block_in_place(|| prompt.ids(|text| server.model.prompt_ids(text)))?;
    if prompts.is_empty() || prompts.len() > server.limits.inputs {
        let expected = format!("1 to {} prompts", server.limits.inputs);
        return Err(ApiError::field("prompt", &expected, prompts.len()));
    }
    let ticket = server.admit(prompts.iter().map(Vec::len).sum())?;
    let max_tokens = Some(max_tokens.unwrap_or(DEFAULT_MAX_TOKENS));
    let one = async |ids: Vec<TokenId>| -> Result<(Choice, Value), ApiError> {
        let prompt = Prompt { ids, max_tokens, logprobs, echo };
        let mut speaker = Speaker::start(&server, Arc::clone(&ticket), prompt, &choices).await?;
        let mut choice = Choice::default();
        while let Some(said) = speaker.next().await? {
            choice.add(&server, said);
        }
        Ok((choice, speaker.usage()))
    };
    let all = try_join_all(prompts.into_iter().map(one)).await?;
    let sum = |key: &str| all.iter().filter_map(|(_, usage)| usage[key].as_u64()).sum::<u64>();
    let usage = json!({
        "prompt_tokens": sum("prompt_tokens"),
        "completion_tokens": sum("completion_tokens"),
        "total_tokens": sum("total_tokens"),
    });
    let choices: Vec<Value> =
        all.iter().enumerate().map(|(index, (choice, _))| choice.json(index, logprobs.is_some())).collect();
    Ok(Json(json!({
        "id": format!("cmpl-{:032x}", rand::random::<u128>()),
        "object": "text_completion",
        "created": server.created,
        "model": server.name,
        "choices": choices,
        "usage": usage,
    })))
}

/// One prompt's continuation.
#[derive(Default)]
struct Choice {
    text: String,
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
    finish: &'static str,
    /// Characters of the tokens so far.
    offset: usize,
}

impl Choice {
    fn add(&mut self, server: &Server, said: Said) {
        match said {
            Said::Prompt(token) => {
                let text = self.token(server, &token);
                self.text += &text;
            }
            Said::Piece(piece, tokens) => {
                self.text += &piece;
                tokens.iter().for_each(|token| drop(self.token(server, token)));
            }
            Said::End(finish) => self.finish = finish,
        }
    }

    fn token(&mut self, server: &Server, token: &Token) -> String {
        let decode = |id: TokenId| server.model.base().tokenizer.decode(&[id], false).unwrap_or_default();
        let text = decode(token.id);
        self.text_offset.push(self.offset);
        self.offset += text.chars().count();
        self.token_logprobs.push(token.logprob);
        self.top_logprobs.push(match token.logprob {
            None => Value::Null,
            Some(logprob) => {
                // The token itself is there with the same number: who compares finds out whether it is the most probable. Of
                // others that are spelled alike, as parts of characters are, the ids tell them apart.
                let mut top: Map<String, Value> = Map::new();
                top.insert(text.clone(), json!(logprob));
                for (id, logprob) in token.top.iter().filter(|(id, _)| *id != token.id) {
                    let text = decode(*id);
                    let name = if top.contains_key(&text) { format!("token_id:{id}") } else { text };
                    top.insert(name, json!(logprob));
                }
                Value::Object(top)
            }
        });
        self.tokens.push(text.clone());
        text
    }

    fn json(&self, index: usize, with_logprobs: bool) -> Value {
        let logprobs = with_logprobs.then(|| {
            json!({
                "tokens": self.tokens,
                "token_logprobs": self.token_logprobs,
                "top_logprobs": self.top_logprobs,
                "text_offset": self.text_offset,
            })
        });
        json!({ "index": index, "text": self.text, "logprobs": logprobs, "finish_reason": self.finish })
    }
}
