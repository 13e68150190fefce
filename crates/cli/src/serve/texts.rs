//! Texts of a request to tokens, and tokens to vectors.

use super::api_error::ApiError;
use super::input::Input;
use super::state::{Reading, Server};
use futures_util::future::try_join_all;
use lapidary::embed::EmbedOptions;
use lapidary::layout::TokenId;
use serde::Deserialize;
use std::sync::Arc;
use tokio::task::block_in_place;
use utoipa::ToSchema;

/// An end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
pub(crate) enum Side {
    #[serde(alias = "left")]
    Left,
    #[default]
    #[serde(alias = "right")]
    Right,
}

/// What becomes of texts that are too long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    /// They are cut to so many tokens, and to what the model can take; otherwise they are an error.
    pub(crate) to: Option<usize>,
    /// Where.
    pub(crate) side: Side,
}

/// The tokens of texts, which a field of the request has.
///
/// # Errors
/// When there are too many or none, one is empty, or one is too long and not to be cut.
pub(crate) fn encoded(server: &Server, field: &str, input: Input, cut: Cut) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let tokenizer = &server.model.base().tokenizer;
    let mut all = block_in_place(|| input.ids(server, field, |text| Ok(tokenizer.encode(text)?)))?;
    if all.is_empty() || all.len() > server.limits.inputs {
        return Err(ApiError::num_texts(field, server.limits.inputs, all.len()));
    }
    let longest = server.longest_text()?;
    let limit = longest.min(cut.to.unwrap_or(longest)).max(1);
    for ids in &mut all {
        if ids.is_empty() {
            return Err(ApiError::empty(field));
        }
        if ids.len() > limit && cut.to.is_none() {
            return Err(ApiError::field(field, &format!("texts of at most {limit} tokens"), ids.len()));
        }
        server.metrics.truncations.inc_by(u64::from(ids.len() > limit));
        match cut.side {
            Side::Left => drop(ids.drain(..ids.len().saturating_sub(limit))),
            Side::Right => ids.truncate(limit),
        }
    }
    Ok(all)
}

/// The vectors of texts.
///
/// # Errors
/// 429 when too much waits; 400 for a token outside the vocabulary.
pub(crate) async fn vectors(
    server: &Arc<Server>,
    all: Vec<Vec<TokenId>>,
    normalise: bool,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let ticket = server.admit(all.iter().map(Vec::len).sum())?;
    let options = EmbedOptions { normalise, ..EmbedOptions::default() };
    let one = async |ids| -> Result<Vec<f32>, ApiError> {
        Ok(server.read(Arc::clone(&ticket), Reading { ids, options, ..Reading::default() }).await?.vector)
    };
    try_join_all(all.into_iter().map(one)).await
}

/// The cosine of two vectors of unit length.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().clamp(-1.0, 1.0) as f32
}
