//! Pooling: sparse weighted sums of token states.

use crate::cpu::{axpy, output, slice, tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

struct Pool(Vec<Vec<(u32, f32)>>);

/// `z[b] = sum of weight * x[token]` over the pairs of row b.
///
/// # Shapes
/// `x: [T, D]`, B lists of (token, weight) -> `[B, D]`.
///
/// # Errors
/// When a token is outside T.
pub fn pool(x: &Tensor, rows: Vec<Vec<(u32, f32)>>) -> Result<Tensor> {
    let (t, _) = x.dims2()?;
    if let Some((token, _)) = rows.iter().flatten().find(|(token, _)| *token as usize >= t) {
        bail!("pool: token {token} of {t}");
    }
    x.contiguous()?.apply_op1(Pool(rows))
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width) = (slice(storage, layout, "pool")?, layout.dims()[1]);
        let mut z = vec![0f32; self.0.len() * width];
        for (z, row) in z.chunks_mut(width).zip(&self.0) {
            for (token, weight) in row {
                axpy(*weight, &x[*token as usize * width..(*token as usize + 1) * width], z);
            }
        }
        Ok(output(z, (self.0.len(), width)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &candle_core::CudaStorage, l: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        let ((gpu, x), width) = (cuda::operand(s, l, "pool")?, l.dims()[1]);
        let z = gpu.alloc(self.0.len() * width)?;
        // SAFETY: `pool` has compared the tokens with T; there is a row for each list.
        unsafe { cuda::weighted_rows(gpu, (x, gpu.pointer(&z)), &self.0, None, width)? };
        Ok(gpu.output(z, (self.0.len(), width)))
    }

    fn bwd(&self, x: &Tensor, _z: &Tensor, dz: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dims()[1];
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(x)? {
            // By token, so that each row of the gradient is written once.
            let mut of_token = std::collections::BTreeMap::<u32, Vec<(u32, f32)>>::new();
            for (b, row) in self.0.iter().enumerate() {
                row.iter().for_each(|(token, weight)| of_token.entry(*token).or_default().push((b as u32, *weight)));
            }
            let (tokens, lists): (Vec<u32>, Vec<_>) = of_token.into_iter().unzip();
            let (dz, dx) = (cuda::Read::of(dz)?, gpu.zeros(x.elem_count())?);
            // SAFETY: the lists name rows of `dz`, and the tokens rows of `x`, each once.
            unsafe { cuda::weighted_rows(gpu, (dz.pointer, gpu.pointer(&dx)), &lists, Some(&tokens), width)? };
            return Ok(Some(gpu.tensor(dx, x.shape())));
        }
        let mut dx = vec![0f32; x.elem_count()];
        with_values(dz, |dz| {
            for (dz, row) in dz.chunks(width).zip(&self.0) {
                for (token, weight) in row {
                    axpy(*weight, dz, &mut dx[*token as usize * width..(*token as usize + 1) * width]);
                }
            }
        })?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
