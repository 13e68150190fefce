//! What happens to a text that there is no room for: an error, a cut, or its earlier part is compressed.

use super::api_error::ApiError;
use super::prompt::{Conversation, Tokens};
use super::speaker::{CompressedTokens, LostUsage};
use super::state::{Reading, Server, Ticket};
use axum::http::HeaderValue;
use futures_util::future::try_join_all;
use lapidary::engine::Compressed;
use lapidary::layout::TokenId;
use lapidary::model::ContentPart;
use serde::Deserialize;
use std::sync::Arc;
use tokio::task::block_in_place;
use utoipa::ToSchema;

/// Tokens of a text that become special tokens together.
const SEGMENT_TOKENS: usize = 512;
/// A text of fewer tokens stays as it is.
const MIN_TOKENS: usize = 64;
/// Tokens that are left to a reply whose length was not asked for.
const REPLY_TOKENS: usize = 256;

/// What happens to what is too long: an error; or of a text the end is left out, of a conversation the oldest
/// messages; or what comes first is there as its special tokens alone. The last two are counted in `usage`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Overflow {
    /// 400.
    #[default]
    Error,
    /// Of a text, the end is left out; of a conversation, the oldest messages. It is counted in `usage`.
    Truncate,
    /// What comes first is there as its special tokens alone. It is counted in `usage`.
    Compress,
}

/// What there was no room for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) truncated: usize,
    pub(crate) compressed: CompressedTokens,
}

impl Lost {
    pub(crate) fn add(&mut self, other: Self) {
        self.truncated += other.truncated;
        self.compressed.text_tokens += other.compressed.text_tokens;
        self.compressed.special_tokens += other.compressed.special_tokens;
    }

    /// What is said of it beside the tokens that ran.
    pub(crate) fn usage(self) -> LostUsage {
        LostUsage {
            truncated_tokens: (self.truncated > 0).then_some(self.truncated),
            compressed_tokens: (self.compressed.text_tokens > 0).then_some(self.compressed),
        }
    }

    /// A header for those who do not look at `usage`.
    pub(crate) fn warning(self) -> Option<HeaderValue> {
        let text = format!("299 - \"{} tokens were left out: there was no room for them\"", self.truncated);
        (self.truncated > 0).then(|| HeaderValue::from_str(&text).ok()).flatten()
    }
}

/// The special tokens of a text, a segment at a time.
async fn compress(server: &Server, ticket: &Arc<Ticket>, ids: &[TokenId]) -> Result<Vec<Arc<Compressed>>, ApiError> {
    let segments = ids.len().div_ceil(SEGMENT_TOKENS).max(1);
    let one = async |ids: &[TokenId]| -> Result<Arc<Compressed>, ApiError> {
        let reading = Reading { ids: ids.to_vec(), compress: true, ..Reading::default() };
        server.read(Arc::clone(ticket), reading).await?.compressed.ok_or_else(ApiError::gone)
    };
    // Of one length, about: a rest of a few tokens would say little.
    try_join_all(ids.chunks(ids.len().div_ceil(segments).max(1)).map(one)).await
}

fn counted(compressed: &[Arc<Compressed>]) -> CompressedTokens {
    CompressedTokens {
        text_tokens: compressed.iter().map(|one| one.num_text_tokens()).sum(),
        special_tokens: compressed.iter().map(|one| one.num_tokens()).sum(),
    }
}

/// The vector of a text of any length.
///
/// # Errors
/// 400 for a text that is too long where that is an error, or that compressed is too long too.
pub(crate) async fn embed(
    server: &Server,
    ticket: &Arc<Ticket>,
    mut ids: Vec<TokenId>,
    overflow: Overflow,
) -> Result<(Vec<f32>, Lost), ApiError> {
    let (most, mut lost) = (server.longest_text()?, Lost::default());
    let mut before = Vec::new();
    if ids.len() > most && overflow == Overflow::Truncate {
        lost.truncated = ids.len() - most;
        server.metrics.truncations.inc();
        ids.truncate(most);
    } else if ids.len() > most && overflow == Overflow::Compress {
        let rest = ids.split_off(ids.len() - SEGMENT_TOKENS.min(most / 2));
        before = compress(server, ticket, &ids).await?;
        lost.compressed = counted(&before);
        ids = rest;
    }
    let embedded = server.read(Arc::clone(ticket), Reading { ids, before, ..Reading::default() }).await?;
    Ok((embedded.vector, lost))
}

/// The prompt of a conversation of any length, with room for a reply of `max_tokens`, and its ticket.
///
/// # Errors
/// 400 for one that is too long where that is an error, or whose last message has no room; 429 when too much waits.
pub(crate) async fn prompt(
    server: &Arc<Server>,
    conversation: &mut Conversation,
    (overflow, max_tokens): (Overflow, Option<usize>),
) -> Result<(Arc<Ticket>, Tokens, Lost), ApiError> {
    let reply = max_tokens.unwrap_or(REPLY_TOKENS).min(server.longest_row / 2);
    let most = server.longest_row - reply;
    let (mut tokens, mut lost) = (conversation.tokens(server)?, Lost::default());
    let ticket = server.admit(tokens.0.len())?;
    let first = usize::from(conversation.messages.first().is_some_and(|message| message.role == "system"));
    let mut next = first;
    while tokens.0.len() > most && overflow != Overflow::Error {
        let last = conversation.messages.len().saturating_sub(1);
        if overflow == Overflow::Truncate {
            if first >= last {
                break;
            }
            let before = tokens.0.len();
            conversation.messages.remove(first);
            tokens = conversation.tokens(server)?;
            lost.truncated += before.saturating_sub(tokens.0.len());
            continue;
        }
        if next > last {
            break;
        }
        // Of the last message, what comes last stays as it is: it is what has to be answered.
        let kept = if next == last { SEGMENT_TOKENS.min(most / 4) } else { 0 };
        let compressed = compress_message(server, &ticket, conversation, (next, kept)).await?;
        lost.add(Lost { truncated: 0, compressed });
        tokens = conversation.tokens(server)?;
        next += 1;
    }
    if tokens.0.len() > server.longest_row {
        return Err(lapidary::Error::TooLong { found: tokens.0.len(), limit: server.longest_row }.into());
    }
    Ok((ticket, tokens, lost))
}

/// Compresses the texts of a message, but for the last `kept` tokens.
async fn compress_message(
    server: &Server,
    ticket: &Arc<Ticket>,
    conversation: &mut Conversation,
    (number, kept): (usize, usize),
) -> Result<CompressedTokens, ApiError> {
    let tokenizer = &server.model.base().tokenizer;
    let (mut content, mut sum) = (Vec::new(), CompressedTokens::default());
    let parts = std::mem::take(&mut conversation.messages[number].content);
    let num_parts = parts.len();
    for (i, part) in parts.into_iter().enumerate() {
        let ContentPart::Text(text) = part else {
            content.push(part);
            continue;
        };
        let ids = block_in_place(|| tokenizer.encode(&text)).map_err(lapidary::Error::from)?;
        let mut cut = ids.len().saturating_sub(if i + 1 == num_parts { kept } else { 0 });
        let tail = |cut: usize| tokenizer.decode(&ids[cut..], false).map_err(lapidary::Error::from);
        // Not in the middle of a character.
        while cut > 0 && tail(cut)?.starts_with(char::REPLACEMENT_CHARACTER) {
            cut -= 1;
        }
        if cut < MIN_TOKENS {
            content.push(ContentPart::Text(text));
            continue;
        }
        let compressed = compress(server, ticket, &ids[..cut]).await?;
        let counted = counted(&compressed);
        sum.text_tokens += counted.text_tokens;
        sum.special_tokens += counted.special_tokens;
        content.extend(compressed.into_iter().map(|one| conversation.place(one)));
        content.push(ContentPart::Text(tail(cut)?));
    }
    conversation.messages[number].content = content;
    Ok(sum)
}
