//! Which past tokens a plain row keeps in view: the first ones, separators, and its neighbours.

use std::ops::Range;

use crate::{Base, TokenId, Visibility};

/// The rule of SepLLM (arXiv 2412.12094, section 3): everything else may leave the KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchors {
    /// Tokens at the start of the row that stay in view, BOS among them.
    pub num_initial: u32,
    /// Neighbours that stay in view, the token itself among them; at least 1.
    pub window: u32,
    /// Tokens that stay in view wherever they stand.
    pub separators: Vec<TokenId>,
}

impl Anchors {
    /// The anchors of a row, as sorted, disjoint, maximal ranges.
    #[must_use]
    pub fn of(&self, ids: &[TokenId]) -> Vec<Range<u32>> {
        let mut anchors: Vec<Range<u32>> = Vec::new();
        for (at, id) in (0_u32..).zip(ids) {
            if at >= self.num_initial && !self.separators.contains(id) {
                continue;
            }
            match anchors.last_mut() {
                Some(last) if last.end == at => last.end = at + 1,
                _ => anchors.push(at..at + 1),
            }
        }
        anchors
    }

    /// The attention rule of a row of these tokens.
    #[must_use]
    pub fn visibility(&self, ids: &[TokenId]) -> Visibility {
        Visibility { base: Base::Anchored { window: self.window }, anchors: self.of(ids), cuts: Vec::new() }
    }
}
