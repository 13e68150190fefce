//! `POST /v1/chat/completions`.

use super::api_error::{ApiError, Body};
use super::speaker::{Choices, MAX_TOP_LOGPROBS, Prompt, Said, Speaker};
use super::state::Server;
use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use lapidary::engine::Token;
use lapidary::text::Message;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::block_in_place;
use tokio_stream::wrappers::ReceiverStream;

/// Chunks that wait for a slow reader.
const CHUNKS: usize = 32;

#[derive(Deserialize)]
pub(crate) struct ChatRequest {
    messages: Vec<ChatMessage>,
    model: Option<String>,
    max_completion_tokens: Option<usize>,
    max_tokens: Option<usize>,
    #[serde(default)]
    logprobs: bool,
    top_logprobs: Option<usize>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    response_format: Option<Value>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    functions: Option<Value>,
    #[serde(flatten)]
    choices: Choices,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
pub(crate) struct ChatMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

impl ChatMessage {
    pub(crate) fn message(self) -> Result<Message, ApiError> {
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let text = |part: Part| match (part.r#type.as_str(), part.text) {
                    ("text", Some(text)) => Ok(text),
                    (found, _) => Err(ApiError::field("messages", "parts of type text with a text", found)),
                };
                parts.into_iter().map(text).collect::<Result<String, _>>()?
            }
        };
        Ok(Message { role: self.role, content })
    }
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
        if let Some(choice) =
            self.tool_choice.as_ref().filter(|choice| !matches!(choice.as_str(), Some("none" | "auto")))
        {
            return Err(ApiError::field("tool_choice", "none", choice));
        }
        if let Some(format) = self.response_format.as_ref().filter(|format| format["type"] != "text") {
            return Err(ApiError::field("response_format", "type text", format));
        }
        if let Some(count) = self.top_logprobs.filter(|count| *count > MAX_TOP_LOGPROBS || !self.logprobs) {
            let expected = format!("at most {MAX_TOP_LOGPROBS}, with logprobs true");
            return Err(ApiError::field("top_logprobs", &expected, count));
        }
        Ok(())
    }
}

pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    server.check_model(request.model.as_deref())?;
    request.check()?;
    request.choices.check()?;
    let messages = request.messages.into_iter().map(ChatMessage::message).collect::<Result<Vec<_>, _>>()?;
    let prompt = Prompt {
        ids: block_in_place(|| server.model.chat_ids(&messages))?,
        max_tokens: request.max_completion_tokens.or(request.max_tokens),
        logprobs: request.logprobs.then(|| request.top_logprobs.unwrap_or(0)),
        echo: false,
    };
    let ticket = server.admit(prompt.ids.len())?;
    let head = Head { id: format!("chatcmpl-{:032x}", rand::random::<u128>()), with_logprobs: request.logprobs };
    if !request.stream {
        let mut speaker = Speaker::start(&server, ticket, prompt, &request.choices).await?;
        return Ok(Json(whole(&server, &head, &mut speaker).await?).into_response());
    }
    let include_usage = request.stream_options.is_some_and(|options| options.include_usage);
    let (sender, receiver) = channel(CHUNKS);
    let (started, start) = tokio::sync::oneshot::channel();
    // A task of its own: when the client goes away, sending fails and the request ends.
    tokio::spawn(async move {
        match Speaker::start(&server, ticket, prompt, &request.choices).await {
            Err(error) => drop(started.send(Err(error))),
            Ok(mut speaker) => {
                let _ = started.send(Ok(()));
                let stream = Stream { server: &server, head: &head, include_usage, sender };
                stream.run(&mut speaker).await;
            }
        }
    });
    start.await.map_err(|_| ApiError::gone())??;
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response())
}

/// What all chunks of a reply have.
struct Head {
    id: String,
    with_logprobs: bool,
}

impl Head {
    fn object(&self, server: &Server, object: &str, choices: &Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": server.created,
            "model": server.name,
            "system_fingerprint": server.model.fingerprint(),
            "choices": choices,
        })
    }

    fn logprobs(&self, server: &Server, tokens: &[Token]) -> Value {
        if !self.with_logprobs {
            return Value::Null;
        }
        let one = |id: u32, logprob: Option<f32>| {
            let text = server.model.base().tokenizer.decode(&[id], false).unwrap_or_default();
            json!({ "token": text, "logprob": logprob, "bytes": text.as_bytes() })
        };
        let content: Vec<Value> = (tokens.iter())
            .map(|token| {
                let mut entry = one(token.id, token.logprob);
                entry["top_logprobs"] = token.top.iter().map(|(id, logprob)| one(*id, Some(*logprob))).collect();
                entry
            })
            .collect();
        json!({ "content": content })
    }
}

async fn whole(server: &Server, head: &Head, speaker: &mut Speaker<'_>) -> Result<Value, ApiError> {
    let (mut text, mut tokens, mut finish) = (String::new(), Vec::new(), "stop");
    while let Some(said) = speaker.next().await? {
        match said {
            Said::Prompt(_) => {}
            Said::Piece(piece, more) => {
                text += &piece;
                tokens.extend(more);
            }
            Said::End(end) => finish = end,
        }
    }
    let choice = json!({
        "index": 0,
        "message": { "role": "assistant", "content": text, "refusal": null },
        "logprobs": head.logprobs(server, &tokens),
        "finish_reason": finish,
    });
    let mut reply = head.object(server, "chat.completion", &json!([choice]));
    reply["usage"] = speaker.usage();
    Ok(reply)
}

/// Server-sent events.
struct Stream<'a> {
    server: &'a Server,
    head: &'a Head,
    include_usage: bool,
    sender: Sender<Result<Event, Infallible>>,
}

impl Stream<'_> {
    /// False when nobody listens.
    async fn send(&self, data: String) -> bool {
        self.sender.send(Ok(Event::default().data(data))).await.is_ok()
    }

    async fn chunk(&self, delta: Value, tokens: &[Token], finish: Option<&str>) -> bool {
        let logprobs = if tokens.is_empty() { Value::Null } else { self.head.logprobs(self.server, tokens) };
        let choice = json!({ "index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        let mut chunk = self.head.object(self.server, "chat.completion.chunk", &json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        self.send(chunk.to_string()).await
    }

    async fn run(&self, speaker: &mut Speaker<'_>) {
        if !self.chunk(json!({ "role": "assistant", "content": "" }), &[], None).await {
            return;
        }
        loop {
            let said = tokio::select! {
                said = speaker.next() => said,
                () = self.sender.closed() => return,
            };
            let goes_on = match said {
                Ok(Some(Said::Prompt(_))) => true,
                Ok(Some(Said::Piece(piece, tokens))) => {
                    let is_empty = piece.is_empty() && !self.head.with_logprobs;
                    is_empty || self.chunk(json!({ "content": piece }), &tokens, None).await
                }
                Ok(Some(Said::End(finish))) => self.chunk(json!({}), &[], Some(finish)).await,
                Ok(None) => break,
                Err(error) => {
                    self.send(error.body().to_string()).await;
                    false
                }
            };
            if !goes_on {
                return;
            }
        }
        if self.include_usage {
            let mut chunk = self.head.object(self.server, "chat.completion.chunk", &json!([]));
            chunk["usage"] = speaker.usage();
            if !self.send(chunk.to_string()).await {
                return;
            }
        }
        self.send("[DONE]".into()).await;
    }
}
