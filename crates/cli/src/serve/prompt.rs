//! Messages to the prompt that they make.

use super::api_error::ApiError;
use super::openapi::nothing;
use super::state::Server;
use lapidary::engine::{Compressed, Placed, place};
use lapidary::layout::TokenId;
use lapidary::model::{ContentPart, PartedMessage, PromptPart};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use tokio::task::block_in_place;
use utoipa::ToSchema;

/// One turn of a conversation.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChatMessage {
    /// As the model's chat template knows them.
    #[schema(examples("system", "user", "assistant"))]
    role: String,
    content: Option<Content>,
    #[schema(schema_with = nothing)]
    tool_calls: Option<Value>,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Content {
    /// A text.
    Text(String),
    /// Texts and compressed texts.
    Parts(Vec<Part>),
}

/// Of type `text` with a `text`, or of type `compressed` with the `id` that `/v1/compress` gave.
#[derive(Deserialize, ToSchema)]
struct Part {
    #[schema(pattern = "^(text|compressed)$")]
    r#type: String,
    text: Option<String>,
    /// Without a `text`.
    id: Option<String>,
}

impl ChatMessage {
    pub(crate) fn is_from_user(&self) -> bool {
        self.role == "user"
    }

    /// Its text; compressed parts have none.
    pub(crate) fn text(&self) -> String {
        match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts.iter().filter_map(|part| part.text.as_deref()).collect(),
        }
    }
}

impl ChatMessage {
    /// Its text, where it has nothing else.
    ///
    /// # Errors
    /// 400 for other parts.
    pub(crate) fn text_alone(&self) -> Result<String, ApiError> {
        match &self.content {
            Some(Content::Parts(parts)) => match parts.iter().find(|part| part.r#type != "text" || part.text.is_none())
            {
                Some(part) => Err(ApiError::field("messages", "parts of type text with a text", &part.r#type)),
                None => Ok(self.text()),
            },
            _ => Ok(self.text()),
        }
    }
}

/// A conversation, with the compressed texts that its places stand for.
#[derive(Default)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<PartedMessage>,
    pub(crate) compressed: Vec<Arc<Compressed>>,
}

/// The tokens of a prompt, and the compressed texts in it.
pub(crate) type Tokens = (Vec<TokenId>, Vec<Placed>);

impl Conversation {
    /// # Errors
    /// 400 for an unknown handle.
    pub(crate) fn new(server: &Server, messages: Vec<ChatMessage>) -> Result<Self, ApiError> {
        let mut all = Self::default();
        if messages.is_empty() {
            return Err(ApiError::field("messages", "at least one", "none"));
        }
        for ChatMessage { role, content, tool_calls } in messages {
            if tool_calls.is_some_and(|calls| !calls.is_null() && calls != Value::Array(Vec::new())) {
                return Err(ApiError::field("messages", "no tool_calls: this server calls no tools", "some"));
            }
            let one = |part: Part| match (part.r#type.as_str(), part.text, part.id) {
                ("text", Some(text), None) => Ok(ContentPart::Text(text)),
                ("compressed", None, Some(id)) => server.compressed.get(&id).map(|compressed| all.place(compressed)),
                (found, ..) => {
                    let expected = "parts of type text with a text, or of type compressed with an id";
                    Err(ApiError::field("messages", expected, found))
                }
            };
            let content = match content {
                None => Vec::new(),
                Some(Content::Text(text)) => vec![ContentPart::Text(text)],
                Some(Content::Parts(parts)) => parts.into_iter().map(one).collect::<Result<_, _>>()?,
            };
            all.messages.push(PartedMessage { role, content });
        }
        Ok(all)
    }

    /// A place for a compressed text.
    pub(crate) fn place(&mut self, compressed: Arc<Compressed>) -> ContentPart {
        self.compressed.push(compressed);
        ContentPart::Place(self.compressed.len() - 1)
    }

    /// # Errors
    /// 400 when the model has no chat template, or the template refuses the messages.
    pub(crate) fn tokens(&self, server: &Server) -> Result<Tokens, ApiError> {
        let parts = block_in_place(|| server.model.base().chat_parts(&self.messages))?;
        let (mut ids, mut placed) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                PromptPart::Ids(more) => ids.extend(more),
                PromptPart::Place(number) => placed.push(place(&mut ids, Arc::clone(&self.compressed[number]))),
            }
        }
        Ok((ids, placed))
    }
}
