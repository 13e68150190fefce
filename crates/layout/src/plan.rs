//! What one example becomes: the rows that the decoder runs for it.

use crate::Layout;

/// The rows of one pass that belong to one example.
///
/// A training plan pools exactly one [`View::Query`](crate::View::Query) and one
/// [`View::Positive`](crate::View::Positive), in one row or in two, and one
/// [`View::Negative`](crate::View::Negative) per hard negative. An embedding plan pools one query.
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
}
