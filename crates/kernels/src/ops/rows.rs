//! Which rows of a tensor an operation acts on.

#[cfg(feature = "cuda")]
use crate::cuda;
#[cfg(feature = "cuda")]
use candle_core::Result;

/// Numbers of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    numbers: Vec<u32>,
    #[cfg(feature = "cuda")]
    on_gpu: cuda::Beside<cuda::Uploaded<u32>>,
}

impl From<Vec<u32>> for Rows {
    fn from(numbers: Vec<u32>) -> Self {
        Self {
            numbers,
            #[cfg(feature = "cuda")]
            on_gpu: cuda::Beside::default(),
        }
    }
}

impl std::ops::Deref for Rows {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.numbers
    }
}

#[cfg(feature = "cuda")]
impl Rows {
    /// Where a copy lies on the GPU, and how many there are.
    pub(super) fn on(&self, gpu: &cuda::Gpu) -> Result<(cuda::Pointer, usize)> {
        Ok((self.on_gpu.0.get(gpu, || self.numbers.clone())?, self.numbers.len()))
    }
}
