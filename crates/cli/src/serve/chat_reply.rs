//! What `/v1/chat/completions` answers, whole and in chunks.

use super::speaker::{Finished, Said, Usage};
use super::state::{Server, unix_now};
use lapidary::engine::Token;
use lapidary::layout::TokenId;
use serde::Serialize;
use utoipa::ToSchema;

/// A reply in one piece.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    #[schema(pattern = "^chat\\.completion$")]
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// Of the model's weights.
    system_fingerprint: String,
    /// As many as `n`.
    choices: Vec<ChatChoice>,
    usage: Option<Usage>,
    /// Where `return_embedding` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) embeddings: Option<Embeddings>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    index: usize,
    message: ReplyMessage,
    /// Where they are asked for.
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<Finished>,
}

#[derive(Serialize, ToSchema)]
struct ReplyMessage {
    role: Role,
    content: String,
    /// None: this server does not refuse to speak.
    refusal: Option<String>,
}

/// Who speaks.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Assistant,
}

/// Vectors as `/v1/embeddings` gives them.
#[derive(Serialize, ToSchema)]
pub(crate) struct Embeddings {
    /// Of what the user said last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt: Option<Vec<f32>>,
    /// Of the reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completion: Option<Vec<f32>>,
}

/// A piece of a streamed reply.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    /// The same in all of them.
    id: String,
    #[schema(pattern = "^chat\\.completion\\.chunk$")]
    object: &'static str,
    /// Seconds since 1970, the same in all of them.
    created: u64,
    model: String,
    /// Of the model's weights.
    system_fingerprint: String,
    /// None in chunks behind the reply.
    choices: Vec<ChunkChoice>,
    /// Null but in the last chunk, where `stream_options` ask for it.
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embeddings: Option<Embeddings>,
}

/// A server-sent event.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it names a schema")]
pub(crate) struct ChatEvent {
    /// A `ChatChunk`, an `ErrorReply` that is the last, or `[DONE]`.
    #[schema(extensions(("x-content-schema" = json!({ "$ref": "#/components/schemas/ChatChunk" }))))]
    data: String,
}

#[derive(Serialize, ToSchema)]
struct ChunkChoice {
    /// Of which reply it is.
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    /// Null but in the last of a reply.
    finish_reason: Option<Finished>,
}

/// What is new.
#[derive(Serialize, ToSchema)]
pub(crate) struct Delta {
    /// In the first of a reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<Role>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
}

/// Log-probabilities of the tokens of a text.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    content: Vec<TokenLogprob>,
}

/// A token of the reply with the most probable in its place.
#[derive(Serialize, ToSchema)]
struct TokenLogprob {
    #[serde(flatten)]
    token: Logprob,
    top_logprobs: Vec<Logprob>,
}

#[derive(Serialize, ToSchema)]
struct Logprob {
    token: String,
    logprob: f32,
    /// Of its spelling, in UTF-8.
    bytes: Vec<u8>,
}

/// What has come of a reply.
#[derive(Default)]
pub(crate) struct Spoken {
    pub(crate) text: String,
    tokens: Vec<Token>,
    finish: Option<Finished>,
}

impl Spoken {
    pub(crate) fn add(&mut self, said: Said) {
        match said {
            Said::Start | Said::Prompt(..) => {}
            Said::Piece(piece, tokens) => {
                self.text += &piece;
                self.tokens.extend(tokens);
            }
            Said::End(end) => self.finish = Some(end.finish),
        }
    }
}

/// What all chunks of a reply have.
pub(crate) struct Head {
    id: String,
    created: u64,
    pub(crate) with_logprobs: bool,
}

impl Head {
    pub(crate) fn new(with_logprobs: bool) -> Self {
        Self { id: format!("chatcmpl-{:032x}", rand::random::<u128>()), created: unix_now(), with_logprobs }
    }

    pub(crate) fn logprobs(&self, server: &Server, tokens: &[Token]) -> Option<ChatLogprobs> {
        let one = |id: TokenId, logprob: f32| {
            let text = server.model.base().tokenizer.decode(&[id], false).unwrap_or_default();
            Logprob { bytes: text.as_bytes().to_vec(), token: text, logprob }
        };
        let entry = |token: &Token| {
            let top_logprobs = token.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
            Some(TokenLogprob { token: one(token.id, token.logprob?), top_logprobs })
        };
        self.with_logprobs.then(|| ChatLogprobs { content: tokens.iter().filter_map(entry).collect() })
    }

    pub(crate) fn choice(&self, server: &Server, index: usize, spoken: Spoken) -> ChatChoice {
        let logprobs = self.logprobs(server, &spoken.tokens);
        let message = ReplyMessage { role: Role::Assistant, content: spoken.text, refusal: None };
        ChatChoice { index, message, logprobs, finish_reason: spoken.finish }
    }

    pub(crate) fn completion(&self, server: &Server, choices: Vec<ChatChoice>, usage: Option<Usage>) -> ChatCompletion {
        ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: server.name.clone(),
            system_fingerprint: server.model.fingerprint().into_owned(),
            choices,
            usage,
            embeddings: None,
        }
    }

    pub(crate) fn chunk(
        &self,
        server: &Server,
        (index, delta): (usize, Delta),
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<Finished>,
    ) -> ChatChunk {
        // A token's probabilities stand beside it, and nowhere else.
        let logprobs = logprobs.filter(|logprobs| !logprobs.content.is_empty());
        let choices = vec![ChunkChoice { index, delta, logprobs, finish_reason }];
        ChatChunk { choices, ..self.last(server, None, None) }
    }

    /// A chunk behind the reply.
    pub(crate) fn last(&self, server: &Server, embeddings: Option<Embeddings>, usage: Option<Usage>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: server.name.clone(),
            system_fingerprint: server.model.fingerprint().into_owned(),
            choices: Vec::new(),
            usage,
            embeddings,
        }
    }
}
