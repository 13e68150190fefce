//! Where weights come from: matrices in their storage format and vectors of f32, by Hugging Face names.

use crate::Error;
use kernels::Matrix;
use serde::{Deserialize, Serialize};

/// Number format of frozen weights, and with it of the products with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightFormat {
    /// As the model's file stores them (quantised weights stay quantised); products in f32.
    #[default]
    Stored,
    /// Products of numbers rounded to bf16, summed in f32: fast on CPUs with units for them (AVX-512-BF16, AMX).
    Bf16,
    /// Products of numbers rounded to eight bits, through which nothing is trained: faster still on CPUs with units for them
    /// (AVX-512-VNNI, AMX); not on GPUs.
    Int8,
    /// Widened to f32; products in f32.
    F32,
}

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
