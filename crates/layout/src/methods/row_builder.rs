//! A row in the making: stretches laid end to end, positions contiguous.

use std::ops::Range;

use super::num_positions;
use crate::{Cut, Input, Layout, LayoutError, LayoutParts, Pooled, Role, TokenId, Visibility};

#[derive(Default)]
pub(super) struct RowBuilder {
    parts: LayoutParts,
}

impl RowBuilder {
    /// Adds a stretch and tells where it lies.
    pub(super) fn add(
        &mut self,
        inputs: impl IntoIterator<Item = Input>,
        role: Role,
        adapted: bool,
    ) -> Result<Range<u32>, LayoutError> {
        let parts = &mut self.parts;
        let start = num_positions(parts.inputs.len())?;
        parts.inputs.extend(inputs);
        let end = num_positions(parts.inputs.len())?;
        parts.roles.resize(end as usize, role);
        parts.positions.extend(start..end);
        parts.labels.resize(end as usize, None);
        parts.adapted.resize(end as usize, adapted);
        Ok(start..end)
    }

    /// Adds a stretch of ordinary tokens.
    pub(super) fn tokens(&mut self, ids: &[TokenId], role: Role, adapted: bool) -> Result<Range<u32>, LayoutError> {
        self.add(ids.iter().map(|&id| Input::Token(id)), role, adapted)
    }

    /// The position before each token of `ids`, which lie from `start` on, must predict it; nothing stands before the
    /// first of the row.
    pub(super) fn predict(&mut self, start: u32, ids: &[TokenId]) {
        for (at, &id) in (start as usize..).zip(ids).filter(|(at, _)| *at > 0) {
            self.parts.labels[at - 1] = Some(id);
        }
    }

    /// Sets the rule before any cut.
    pub(super) fn see(&mut self, visibility: Visibility) {
        self.parts.visibility = visibility;
    }

    /// Hides keys from queries; nothing for empty ranges.
    pub(super) fn hide(&mut self, queries: Range<u32>, keys: Range<u32>) {
        if !queries.is_empty() && !keys.is_empty() {
            self.parts.visibility.cuts.push(Cut { queries, keys });
        }
    }

    /// Reads a vector from the row.
    pub(super) fn pool(&mut self, pooled: Pooled) {
        self.parts.pooled.push(pooled);
    }

    pub(super) fn build(self) -> Result<Layout, LayoutError> {
        Layout::new(self.parts)
    }
}
