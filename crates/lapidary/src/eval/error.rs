//! What can be wrong with the numbers an evaluation is given.

use thiserror::Error;

/// Result of an evaluation.
pub type Result<T> = std::result::Result<T, EvalError>;

/// Why a score cannot be computed; every variant names the input and where in it.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum EvalError {
    /// Two inputs that belong together differ in length.
    #[error("{left} has {num_left} entries, but {right} has {num_right}")]
    LengthMismatch {
        /// Name of the first input.
        left: &'static str,
        /// Its length.
        num_left: usize,
        /// Name of the second input.
        right: &'static str,
        /// Its length.
        num_right: usize,
    },
    /// Too few entries for the score to be defined.
    #[error("{what}: expected at least {expected}, found {found}")]
    TooFew {
        /// Name of the input.
        what: &'static str,
        /// The least number that gives a score.
        expected: usize,
        /// The number found.
        found: usize,
    },
    /// A value is NaN, or infinite where it must not be.
    #[error("{what}: entry {index} is {value}, expected a finite number")]
    NotFinite {
        /// Name of the input.
        what: &'static str,
        /// Index of the entry (row-major for vectors: row x width + column).
        index: usize,
        /// The value found.
        value: f64,
    },
    /// All values are equal, so there is nothing to rank or scale.
    #[error("{what}: all {count} entries are equal, so the score is undefined")]
    Constant {
        /// Name of the input.
        what: &'static str,
        /// Number of entries.
        count: usize,
    },
    /// A vector has another width than the first one.
    #[error("{what}: row {row} has width {found}, expected {expected}")]
    Width {
        /// Name of the input.
        what: &'static str,
        /// Row of the vector.
        row: usize,
        /// The width expected.
        expected: usize,
        /// The width found.
        found: usize,
    },
    /// An index points outside what it indexes.
    #[error("{what}: entry {entry} is index {index}, but there are only {count}")]
    OutOfRange {
        /// Name of the input.
        what: &'static str,
        /// Which entry holds the index.
        entry: usize,
        /// The index found.
        index: usize,
        /// The number of things it may point to.
        count: usize,
    },
    /// A setting has a value that makes no sense.
    #[error("{setting} is {found}, expected {expected}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A subject of a multiple-choice set has too few examples to show before the question.
    #[error("subject `{subject}`: expected at least {expected} examples in the dev split, found {found}")]
    TooFewExamples {
        /// The subject.
        subject: String,
        /// Examples shown before each question.
        expected: usize,
        /// Examples there are.
        found: usize,
    },
}

/// Checks that every vector has the width of the first and holds finite numbers; returns that width.
pub(crate) fn check_vectors<E: AsRef<[f32]>>(what: &'static str, vectors: &[E]) -> Result<usize> {
    let width = vectors.first().map_or(0, |vector| vector.as_ref().len());
    if width == 0 {
        return Err(EvalError::TooFew { what, expected: 1, found: 0 });
    }
    for (row, vector) in vectors.iter().enumerate() {
        let vector = vector.as_ref();
        if vector.len() != width {
            return Err(EvalError::Width { what, row, expected: width, found: vector.len() });
        }
        if let Some(column) = vector.iter().position(|value| !value.is_finite()) {
            return Err(EvalError::NotFinite { what, index: row * width + column, value: f64::from(vector[column]) });
        }
    }
    Ok(width)
}

/// Checks that two inputs that belong together have one length.
pub(crate) fn check_lengths(left: &'static str, num_left: usize, right: &'static str, num_right: usize) -> Result<()> {
    if num_left == num_right {
        return Ok(());
    }
    Err(EvalError::LengthMismatch { left, num_left, right, num_right })
}
