//! The methods, one file each, and what the training-free ones share.

pub(crate) mod autocompressor;
pub(crate) mod echo;
pub(crate) mod gem;
pub(crate) mod gist;
pub(crate) mod gritlm;
pub(crate) mod icae;
pub(crate) mod last;
pub(crate) mod llm2vec;
pub(crate) mod llm2vec_gen;
pub(crate) mod mean;
pub(crate) mod prompt_eol;
mod row_builder;
pub(crate) mod sepllm;
pub(crate) mod simcse;
mod text_row;
pub(crate) mod weighted_mean;

use std::ops::Range;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    Input, Layout, LayoutError, LayoutParts, MethodError, Plan, Pooled, Role, SpecialInit, SpecialToken, TokenId,
    Visibility,
};

/// The settings of a method that has none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

/// The settings of a method; an unknown field or a value of the wrong kind is told.
fn parse<T: DeserializeOwned>(method: &'static str, settings: Value) -> Result<T, MethodError> {
    serde_json::from_value(settings).map_err(|source| MethodError::Settings { method, source })
}

/// Refuses any setting.
fn no_settings(method: &'static str, settings: Value) -> Result<(), MethodError> {
    parse::<NoSettings>(method, settings).map(|_| ())
}

pub(crate) fn check_text(method: &'static str, part: &'static str, text: &[TokenId]) -> Result<(), MethodError> {
    if text.is_empty() { Err(MethodError::EmptyText { method, part }) } else { Ok(()) }
}

fn wrong_setting(method: &'static str, field: &'static str, expected: &'static str, found: String) -> MethodError {
    MethodError::Setting { method, field, expected, found }
}

fn check_num_special_tokens(method: &'static str, k: u32) -> Result<(), MethodError> {
    /// More than any text needs; a bound, because every row carries them.
    const MAX: u32 = 1024;
    if (1..=MAX).contains(&k) {
        return Ok(());
    }
    Err(wrong_setting(method, "num_special_tokens", "between 1 and 1024", k.to_string()))
}

/// `[E0]`, `[E1]`, … and how each starts.
fn special_tokens(inits: &[SpecialInit]) -> Vec<SpecialToken> {
    let token = |(j, &init)| SpecialToken { content: format!("[E{j}]"), init };
    inits.iter().enumerate().map(token).collect()
}

/// The states of the last `k` positions of the plan's row `number`.
fn soft_inputs(number: u32, row: &Layout, k: u32, detached: bool) -> impl Iterator<Item = Input> + use<> {
    let end = row.num_tokens() as u32;
    (end - k..end).map(move |position| Input::Soft { row: number, position, detached })
}

/// The number of tokens as a position index.
fn num_positions(num_tokens: usize) -> Result<u32, LayoutError> {
    u32::try_from(num_tokens).map_err(|_| LayoutError::TooLong { num_tokens })
}

/// One causal row of ordinary tokens, the pieces end to end; `pool` is given the span of the piece
/// whose index is `pooled_piece`.
fn plain_plan(
    pieces: &[&[TokenId]],
    pooled_piece: usize,
    pool: impl Fn(Range<u32>) -> Pooled,
) -> Result<Plan, MethodError> {
    let num_tokens = num_positions(pieces.iter().map(|piece| piece.len()).sum())?;
    let start: usize = pieces[..pooled_piece].iter().map(|piece| piece.len()).sum();
    let span = start as u32..(start + pieces[pooled_piece].len()) as u32;
    let inputs: Vec<Input> = pieces.iter().copied().flatten().map(|&id| Input::Token(id)).collect();
    let row = Layout::new(LayoutParts {
        roles: vec![Role::Plain; inputs.len()],
        positions: (0..num_tokens).collect(),
        labels: vec![None; inputs.len()],
        adapted: vec![false; inputs.len()],
        visibility: Visibility::default(),
        pooled: vec![pool(span)],
        inputs,
    })?;
    Ok(Plan { rows: vec![row] })
}
