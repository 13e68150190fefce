//! What `/v1/chat/completions` answers, whole and in chunks.

use super::speaker::{Said, Usage};
use super::state::{Server, unix_now};
use lapidary::engine::Token;
use lapidary::layout::TokenId;
use serde::Serialize;

/// A reply in one piece.
#[derive(Serialize)]
pub(crate) struct ChatCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Option<Usage>,
    /// Where `return_embedding` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) embeddings: Option<Embeddings>,
}

#[derive(Serialize)]
pub(crate) struct ChatChoice {
    index: usize,
    message: ReplyMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ReplyMessage {
    role: &'static str,
    content: String,
    /// None: this server does not refuse to speak.
    refusal: Option<String>,
}

/// Vectors as `/v1/embeddings` gives them.
#[derive(Serialize)]
pub(crate) struct Embeddings {
    /// Of what the user said last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt: Option<Vec<f32>>,
    /// Of the reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completion: Option<Vec<f32>>,
}

/// A piece of a streamed reply.
#[derive(Serialize)]
pub(crate) struct ChatChunk {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChunkChoice>,
    /// Null but in the last chunk, where `stream_options` ask for it.
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embeddings: Option<Embeddings>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<TokenLogprob>,
}

/// A token of the reply with the most probable in its place.
#[derive(Serialize)]
struct TokenLogprob {
    #[serde(flatten)]
    token: Logprob,
    top_logprobs: Vec<Logprob>,
}

#[derive(Serialize)]
struct Logprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// What has come of a reply.
#[derive(Default)]
pub(crate) struct Spoken {
    pub(crate) text: String,
    tokens: Vec<Token>,
    finish: Option<&'static str>,
}

impl Spoken {
    pub(crate) fn add(&mut self, said: Said) {
        match said {
            Said::Start | Said::Prompt(_) => {}
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
        let message = ReplyMessage { role: "assistant", content: spoken.text, refusal: None };
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
        finish_reason: Option<&'static str>,
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
