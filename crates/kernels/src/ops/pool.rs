//! Pooling: sparse weighted sums of token states.

use crate::cpu::{axpy, output, slice, tensor, with_values};
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

    fn bwd(&self, x: &Tensor, _z: &Tensor, dz: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dims()[1];
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
