//! What one example becomes: the rows that the decoder runs for it.

use crate::{Input, Layout, LayoutError};

/// The rows of one example. Those without soft inputs run in one pass; a row with soft inputs runs in a later pass
/// than the rows whose hidden states it reads.
///
/// A training plan pools exactly one [`View::Query`](crate::View::Query) and one
/// [`View::Positive`](crate::View::Positive), in one row or in two, and one
/// [`View::Negative`](crate::View::Negative) per hard negative; one without a loss over vectors pools nothing. An
/// embedding plan is one row that pools one query.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The rows; none attends to another.
    pub rows: Vec<Layout>,
}

impl Plan {
    /// The number of positions of all rows.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.rows.iter().map(Layout::num_tokens).sum()
    }

    /// The pass in which each row runs, counted from 0.
    ///
    /// # Errors
    /// [`LayoutError::Soft`] for a soft input that reads no position of an earlier row.
    pub fn passes(&self) -> Result<Vec<usize>, LayoutError> {
        let mut passes = Vec::with_capacity(self.rows.len());
        for (row, layout) in self.rows.iter().enumerate() {
            let mut pass = 0;
            for input in layout.inputs() {
                let Input::Soft { row: from, position, .. } = *input else { continue };
                let earlier = self.rows[..row].get(from as usize);
                if earlier.is_none_or(|earlier| position as usize >= earlier.num_tokens()) {
                    return Err(LayoutError::Soft { row, from, position });
                }
                let after: usize = passes[from as usize];
                pass = pass.max(after + 1);
            }
            passes.push(pass);
        }
        Ok(passes)
    }
}
