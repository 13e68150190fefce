//! Where weights come from: matrices in their storage format and vectors of f32, by Hugging Face names.

use crate::Error;
use kernels::Matrix;

/// A file or directory of weights.
pub trait WeightSource {
    /// The matrix `name`, `[rows, cols]`, in its storage format.
    ///
    /// # Errors
    /// When it is missing, of another shape, or damaged.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error>;

    /// The vector `name`, `[len]`, as f32.
    ///
    /// # Errors
    /// When it is missing, of another length, or damaged.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error>;
}
