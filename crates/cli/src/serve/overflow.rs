//! What happens to a text that there is no room for: an error, a cut, or its earlier part is compressed.

use super::api_error::ApiError;
use super::prompt::{Conversation, Tokens};
use super::speaker::{CompressedTokens, LostUsage};
use super::state::{Reading, Server, Ticket};
use axum::http::HeaderValue;
use futures_util::future::try_join_all;
use lapidary::engine::Compressed;
use lapidary::layout::TokenId;
use lapidary::model::{ContentPart, PartedMessage};
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
    let segments = ids.len().div_ceil(segment_tokens(server)?).max(1);
    let one = async |ids: &[TokenId]| -> Result<Arc<Compressed>, ApiError> {
        let reading = Reading { ids: ids.to_vec(), compress: true, ..Reading::default() };
        server.read(Arc::clone(ticket), reading).await?.compressed.ok_or_else(ApiError::gone)
    };
    // Of one length, about: a rest of a few tokens would say little.
    try_join_all(ids.chunks(ids.len().div_ceil(segments).max(1)).map(one)).await
}

fn segment_tokens(server: &Server) -> Result<usize, ApiError> {
    Ok(SEGMENT_TOKENS.min(server.longest_text()?))
}

fn counted(compressed: &[Arc<Compressed>]) -> CompressedTokens {
    CompressedTokens {
        text_tokens: compressed.iter().map(|one| one.num_text_tokens()).sum(),
        special_tokens: compressed.iter().map(|one| one.num_tokens()).sum(),
    }
}

/// What there is no room for, and what could be done about it that was not.
fn too_long(field: &str, (limit, found): (usize, usize), overflow: Overflow) -> ApiError {
    let hint = if overflow == Overflow::Error { "; `overflow` may be `truncate` or `compress`" } else { "" };
    ApiError::field(field, &format!("at most {limit} tokens"), format!("{found}{hint}"))
}

/// # Errors
/// 400 for a text of so many tokens where that is an error.
pub(crate) fn check(server: &Server, num_tokens: usize, overflow: Overflow) -> Result<(), ApiError> {
    let most = server.longest_text()?;
    let is_wrong = num_tokens > most && overflow == Overflow::Error;
    if is_wrong { Err(too_long("input", (most, num_tokens), overflow)) } else { Ok(()) }
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
    if ids.len() > most {
        match overflow {
            Overflow::Error => check(server, ids.len(), overflow)?,
            Overflow::Truncate => {
                lost.truncated = ids.len() - most;
                server.metrics.truncations.inc();
                ids.truncate(most);
            }
            Overflow::Compress => {
                let rest = ids.split_off(ids.len() - SEGMENT_TOKENS.min(most.div_ceil(2)));
                before = compress(server, ticket, &ids).await?;
                lost.compressed = counted(&before);
                ids = rest;
            }
        }
    }
    let embedded = server.read(Arc::clone(ticket), Reading { ids, before, ..Reading::default() }).await?;
    Ok((embedded.vector, lost))
}

/// The prompt of a conversation of any length, with room for a reply of `max_tokens`, and the ticket of `n` replies.
///
/// # Errors
/// 400 for one that is too long where that is an error, or whose last message has no room; 429 when too much waits.
pub(crate) async fn prompt(
    server: &Arc<Server>,
    conversation: &mut Conversation,
    (overflow, max_tokens, n): (Overflow, Option<usize>, usize),
) -> Result<(Arc<Ticket>, Tokens, Lost), ApiError> {
    let reply = max_tokens.unwrap_or(REPLY_TOKENS).min(server.longest_row / 2);
    let most = server.longest_row - reply;
    let (mut tokens, mut lost) = (conversation.tokens(server)?, Lost::default());
    let ticket = server.admit(tokens.0.len().saturating_mul(n))?;
    if tokens.0.len() > most && overflow != Overflow::Error {
        let (old, left) = without_old(server, conversation, &tokens, (overflow, most)).await?;
        match overflow {
            Overflow::Compress => lost.compressed = put_compressed(server, &ticket, conversation, old).await?,
            _ if old.is_empty() => {}
            _ => {
                lost.truncated = tokens.0.len().saturating_sub(left);
                server.metrics.truncations.inc();
            }
        }
        tokens = conversation.tokens(server)?;
        if tokens.0.len() > most && overflow == Overflow::Compress {
            // Of the last message, what comes last stays as it is: it is what has to be answered.
            let compressed = compress_last(server, &ticket, conversation, SEGMENT_TOKENS.min(most / 4)).await?;
            lost.add(Lost { truncated: 0, compressed });
            tokens = conversation.tokens(server)?;
        }
    }
    if tokens.0.len() > server.longest_row {
        return Err(too_long("messages", (server.longest_row, tokens.0.len()), overflow));
    }
    Ok((ticket, tokens, lost))
}

/// Takes as many of the oldest messages out as there is no room for, but those of the system and the last; what is left
/// begins with the user's, as templates want it. Returns them, and the tokens of what is left.
async fn without_old(
    server: &Server,
    conversation: &mut Conversation,
    tokens: &Tokens,
    (overflow, most): (Overflow, usize),
) -> Result<(Vec<PartedMessage>, usize), ApiError> {
    let messages = &conversation.messages;
    let is_system = |message: &PartedMessage| matches!(message.role.as_str(), "system" | "developer");
    let first = messages.iter().take_while(|message| is_system(message)).count();
    let last = messages.len().saturating_sub(1);
    let starts: Vec<usize> = (first + 1..=last).filter(|at| *at == last || messages[*at].role == "user").collect();
    let (num_special, segment) = (server.model.method().special_tokens().len(), segment_tokens(server)?);
    // By halves, because each try encodes the conversation.
    let (mut low, mut high, mut left) = (0, starts.len().saturating_sub(1), tokens.0.len());
    while !starts.is_empty() {
        let middle = usize::midpoint(low, high);
        let kept = [&messages[..first], &messages[starts[middle]..]].concat();
        left = Conversation { messages: kept, compressed: conversation.compressed.clone() }.tokens(server)?.0.len();
        let instead = match overflow {
            Overflow::Compress => tokens.0.len().saturating_sub(left).div_ceil(segment) * num_special,
            _ => 0,
        };
        if left + instead <= most {
            high = middle;
        } else {
            low = middle + 1;
        }
        if low >= high {
            let start = starts[high];
            let old: Vec<PartedMessage> = conversation.messages.drain(first..start).collect();
            left = conversation.tokens(server)?.0.len();
            return Ok((old, left));
        }
        // Whoever waits for this thread goes first, and whoever has gone away is noticed.
        tokio::task::yield_now().await;
    }
    Ok((Vec::new(), left))
}

/// Puts messages, as their special tokens, before what the next one says.
async fn put_compressed(
    server: &Server,
    ticket: &Arc<Ticket>,
    conversation: &mut Conversation,
    old: Vec<PartedMessage>,
) -> Result<CompressedTokens, ApiError> {
    let tokenizer = &server.model.base().tokenizer;
    let (mut text, mut places) = (String::new(), Vec::new());
    for PartedMessage { role, content } in old {
        text += &format!("{role}: ");
        for part in content {
            match part {
                ContentPart::Text(said) => text += &said,
                ContentPart::Place(_) => places.push(part),
            }
        }
        text.push('\n');
    }
    let ids = block_in_place(|| tokenizer.encode_long(&text)).map_err(lapidary::Error::from)?;
    let mut sum = CompressedTokens::default();
    if !ids.is_empty() {
        let compressed = compress(server, ticket, &ids).await?;
        sum = counted(&compressed);
        places.extend(compressed.into_iter().map(|one| conversation.place(one)));
    }
    let is_system = |message: &PartedMessage| matches!(message.role.as_str(), "system" | "developer");
    if let Some(next) = conversation.messages.iter_mut().find(|message| !is_system(message)) {
        places.append(&mut next.content);
        next.content = places;
    }
    Ok(sum)
}

/// Compresses the texts of the last message, but for the last `kept` tokens.
async fn compress_last(
    server: &Server,
    ticket: &Arc<Ticket>,
    conversation: &mut Conversation,
    kept: usize,
) -> Result<CompressedTokens, ApiError> {
    let tokenizer = &server.model.base().tokenizer;
    let Some(number) = conversation.messages.len().checked_sub(1) else { return Ok(CompressedTokens::default()) };
    let (mut content, mut sum) = (Vec::new(), CompressedTokens::default());
    let parts = std::mem::take(&mut conversation.messages[number].content);
    let num_parts = parts.len();
    for (i, part) in parts.into_iter().enumerate() {
        let ContentPart::Text(text) = part else {
            content.push(part);
            continue;
        };
        let encoded = block_in_place(|| tokenizer.encode_with_offsets(&text));
        let (ids, places) = encoded.map_err(lapidary::Error::from)?;
        let mut cut = ids.len().saturating_sub(if i + 1 == num_parts { kept } else { 0 });
        let start = |cut: usize| places.get(cut).map_or(text.len(), |place| place.start);
        // Not in the middle of a character.
        while cut > 0 && !text.is_char_boundary(start(cut)) {
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
        content.push(ContentPart::Text(text[start(cut)..].to_owned()));
    }
    conversation.messages[number].content = content;
    Ok(sum)
}
