//! What a run shows for itself: plots as PNG bytes, and one self-contained HTML page.

mod axis;
pub mod bars;
mod canvas;
pub mod comparison;
mod comparison_page;
pub mod curves;
pub mod heat_map;
pub mod html;
pub mod lines;
pub mod markdown;
pub mod results;
pub mod runs;
pub mod score_grid;

use thiserror::Error;

/// Why a plot or a page cannot be made.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Nothing to show.
    #[error("{what} is empty, expected at least one entry")]
    Empty {
        /// Name of the input.
        what: &'static str,
    },
    /// A number is NaN or infinite.
    #[error("{what}: entry {index} is {value}, expected a finite number")]
    NotFinite {
        /// Name of the input.
        what: &'static str,
        /// Index of the entry.
        index: usize,
        /// The value found.
        value: f64,
    },
    /// An input has another size than the one it belongs to.
    #[error("{what} has {found} entries, expected {expected}")]
    Size {
        /// Name of the input.
        what: String,
        /// The size expected.
        expected: usize,
        /// The size found.
        found: usize,
    },
    /// More entries than the plot can show legibly.
    #[error("{what} has {found} entries, the plot shows at most {most}")]
    TooMany {
        /// Name of the input.
        what: &'static str,
        /// The most that can be shown.
        most: usize,
        /// The number found.
        found: usize,
    },
    /// A figure of a page is not a PNG.
    #[error("figure `{caption}`: its bytes do not begin as a PNG does")]
    NotPng {
        /// Caption of the figure.
        caption: String,
    },
    /// A figure of a page has no text for readers who do not see it.
    #[error("figure `{caption}`: its alternative text is empty")]
    NoAlternative {
        /// Caption of the figure.
        caption: String,
    },
    /// The drawing library failed.
    #[error("drawing failed: {0}")]
    Drawing(String),
    /// The PNG could not be encoded.
    #[error("PNG encoding failed: {0}")]
    Encoding(#[from] png::EncodingError),
    /// The page template failed.
    #[error("page template failed: {0}")]
    Template(#[from] minijinja::Error),
}

/// Checks that every number is finite.
fn check_finite(what: &'static str, values: impl IntoIterator<Item = f64>) -> Result<(), ReportError> {
    for (index, value) in values.into_iter().enumerate() {
        if !value.is_finite() {
            return Err(ReportError::NotFinite { what, index, value });
        }
    }
    Ok(())
}

/// Checks that there are between one and `most` entries.
fn check_count(what: &'static str, found: usize, most: usize) -> Result<(), ReportError> {
    match found {
        0 => Err(ReportError::Empty { what }),
        found if found > most => Err(ReportError::TooMany { what, most, found }),
        _ => Ok(()),
    }
}
