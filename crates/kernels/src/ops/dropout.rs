//! Dropout of hidden states with a mask from the caller's random numbers (the noise of SimCSE, arXiv 2104.08821).

use crate::cpu::{output, slice, tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

struct Dropout(Arc<Vec<f32>>);

/// `y = x * factors`: 0 where dropped, `1 / (1 - ratio)` where kept.
///
/// # Shapes
/// `x: [T, D]`, as many factors -> `[T, D]`.
///
/// # Errors
/// When the number of factors differs.
pub fn dropout(x: &Tensor, factors: Arc<Vec<f32>>) -> Result<Tensor> {
    if x.elem_count() != factors.len() {
        bail!("dropout: {} factors for {:?}", factors.len(), x.shape());
    }
    x.contiguous()?.apply_op1(Dropout(factors))
}

impl Dropout {
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        x.iter().zip(self.0.iter()).map(|(x, f)| x * f).collect()
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(output(self.apply(slice(storage, layout, "dropout")?), layout.shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &candle_core::CudaStorage, l: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        let (gpu, x) = cuda::operand(s, l, "dropout")?;
        let factors = gpu.upload(&self.0)?;
        // SAFETY: there are as many factors as numbers.
        let y = unsafe { cuda::multiply(gpu, (x, gpu.pointer(&factors)), self.0.len())? };
        Ok(gpu.output(y, l.shape()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if dy.device().is_cuda() {
            return dropout(&dy.detach(), Arc::clone(&self.0)).map(Some);
        }
        Ok(Some(tensor(with_values(dy, |dy| self.apply(dy))?, x.shape())?))
    }
}
