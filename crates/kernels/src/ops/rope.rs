//! Rotary position embedding (arXiv 2104.09864), half-split layout as in `transformers`; tables in f32.

use crate::cpu::{filled, output, slice, tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Cosine and sine of every angle of a run of tokens: `[T, H / 2]` each, f32.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    #[cfg(feature = "cuda")]
    on_gpu: cuda::Beside<[cuda::Uploaded<f32>; 2]>,
}

impl RopeTable {
    /// Angles `position * frequency` for `frequencies` (radians per position, H / 2 of them).
    pub fn new(positions: &[u32], frequencies: &[f64]) -> Self {
        let half = frequencies.len();
        // Packed rows begin anew again and again: each position's angles are found once.
        let mut first_of = HashMap::new();
        let [mut cos, mut sin] = [(); 2].map(|()| Vec::with_capacity(positions.len() * half));
        for (token, position) in positions.iter().enumerate() {
            match first_of.entry(*position) {
                Entry::Occupied(first) => {
                    let first: usize = *first.get();
                    cos.extend_from_within(first * half..(first + 1) * half);
                    sin.extend_from_within(first * half..(first + 1) * half);
                }
                Entry::Vacant(place) => {
                    place.insert(token);
                    let angles = || frequencies.iter().map(|f| f64::from(*position) * f);
                    cos.extend(angles().map(|a| a.cos() as f32));
                    sin.extend(angles().map(|a| a.sin() as f32));
                }
            }
        }
        Self {
            cos,
            sin,
            half,
            #[cfg(feature = "cuda")]
            on_gpu: cuda::Beside::default(),
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

#[cfg(feature = "cuda")]
impl RopeTable {
    /// # Safety
    /// `x` leads to `[tokens, heads, H]` numbers, and the table was made for so many tokens.
    unsafe fn rotate_on(
        &self,
        gpu: &cuda::Gpu,
        x: cuda::Pointer,
        (tokens, heads): (usize, usize),
        sign: f32,
    ) -> Result<CudaSlice<f32>> {
        let [cosines, sines] = &self.on_gpu.0;
        let table = (cosines.get(gpu, || self.cos.clone())?, sines.get(gpu, || self.sin.clone())?);
        // SAFETY: as the caller says.
        unsafe { cuda::rope(gpu, x, table, (tokens, heads, self.half), sign) }
    }
}

pub(super) struct Rope(pub(super) Arc<RopeTable>);

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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &candle_core::CudaStorage, l: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        let (gpu, x) = cuda::operand(s, l, "rope")?;
        // SAFETY: `rope` has compared the shape with the table.
        let y = unsafe { self.0.rotate_on(gpu, x, (l.dims()[0], l.dims()[1]), 1.0)? };
        Ok(gpu.output(y, l.shape()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(dy)? {
            let d = cuda::Read::of(dy)?;
            // SAFETY: a gradient has the shape of what it is of.
            let dx = unsafe { self.0.rotate_on(gpu, d.pointer, (x.dims()[0], x.dims()[1]), -1.0)? };
            return Ok(Some(gpu.tensor(dx, x.shape())));
        }
        // A rotation's transpose is the rotation back.
        let dx = with_values(dy, |dy| self.0.rotate(dy, x.dims()[1], -1.0))?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
