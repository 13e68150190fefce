//! Sums of hidden states: the residual stream.

use crate::cpu::{filled, output, slice};
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

pub(super) struct Add;

/// `x + y`, shared out among the threads, which the tensor library's own sum is not.
///
/// # Shapes
/// Two of the same shape -> that shape.
///
/// # Errors
/// When the shapes differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.dims() != y.dims() {
        bail!("add: {:?} and {:?}", x.shape(), y.shape());
    }
    x.contiguous()?.apply_op2(&y.contiguous()?, Add)
}

const CHUNK: usize = 1 << 14;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, y) = (slice(s1, l1, "add")?, slice(s2, l2, "add")?);
        // SAFETY: both operands have as many numbers as the result, and each of it is written.
        let sums = unsafe {
            filled(x.len(), |sums| {
                let parts = sums.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(y.par_chunks(CHUNK));
                parts.for_each(|((sums, x), y)| {
                    for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                        sum.write(x + y);
                    }
                });
            })
        };
        Ok(output(sums, l1.shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &candle_core::CudaStorage,
        l1: &Layout,
        s2: &candle_core::CudaStorage,
        l2: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let ((gpu, x), (_, y)) = (cuda::operand(s1, l1, "add")?, cuda::operand(s2, l2, "add")?);
        // SAFETY: both operands are of the shape of `l1`.
        let sums = unsafe { cuda::add(gpu, (x, y), l1.shape().elem_count())? };
        Ok(gpu.output(sums, l1.shape()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, _sum: &Tensor, d: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((x.track_op().then(|| d.clone()), y.track_op().then(|| d.clone())))
    }
}
