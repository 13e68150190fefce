//! Rotary position embedding (arXiv 2104.09864), half-split layout as in `transformers`; tables in f32.

use crate::cpu::{filled, output, slice, tensor, with_values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Cosine and sine of every angle of a run of tokens: `[T, H / 2]` each, f32.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Angles `position * frequency` for `frequencies` (radians per position, H / 2 of them).
    pub fn new(positions: &[u32], frequencies: &[f64]) -> Self {
        let angles = || positions.iter().flat_map(|p| frequencies.iter().map(move |f| f64::from(*p) * f));
        Self {
            cos: angles().map(|a| a.cos() as f32).collect(),
            sin: angles().map(|a| a.sin() as f32).collect(),
            half: frequencies.len(),
        }
    }

    fn rotate(&self, x: &[f32], heads: usize, sign: f32) -> Vec<f32> {
        let (half, width) = (self.half, 2 * self.half);
        let fill = |y: &mut [MaybeUninit<f32>]| {
            y.par_chunks_mut(heads * width).zip(x.par_chunks(heads * width)).enumerate().with_min_len(64).for_each(
                |(t, (y, x))| {
                    let (cos, sin) = (&self.cos[t * half..(t + 1) * half], &self.sin[t * half..(t + 1) * half]);
                    for (y, x) in y.chunks_mut(width).zip(x.chunks(width)) {
                        let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
                        for i in 0..half {
                            y1[i].write(x1[i] * cos[i] - sign * x2[i] * sin[i]);
                            y2[i].write(x2[i] * cos[i] + sign * x1[i] * sin[i]);
                        }
                    }
                },
            );
        };
        // SAFETY: `x` has whole heads, and both halves of each are written.
        unsafe { filled(x.len(), fill) }
    }
}

struct Rope(Arc<RopeTable>);

/// Rotates pairs `(x[i], x[i + H/2])` of each head by the angles of its token.
///
/// # Shapes
/// `x: [T, heads, H]`, table of T tokens -> `[T, heads, H]`.
///
/// # Errors
/// When the table was made for another T or H.
pub fn rope(x: &Tensor, table: &Arc<RopeTable>) -> Result<Tensor> {
    let (t, _, width) = x.dims3()?;
    if width != 2 * table.half || t * table.half != table.cos.len() {
        bail!(
            "rope: expected {} tokens of heads of {}, found {:?}",
            table.cos.len() / table.half.max(1),
            2 * table.half,
            x.shape()
        );
    }
    x.contiguous()?.apply_op1(Rope(Arc::clone(table)))
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let heads = layout.dims()[1];
        Ok(output(self.0.rotate(slice(storage, layout, "rope")?, heads, 1.0), layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        // A rotation's transpose is the rotation back.
        let dx = with_values(dy, |dy| self.0.rotate(dy, x.dims()[1], -1.0))?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
