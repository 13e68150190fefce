//! Rotary position embedding (arXiv 2104.09864), half-split layout as in `transformers`; tables in f32.

use crate::cpu::{filled, output, slice, tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CpuStorage, CustomOp1, InplaceOp1, Layout, Result, Shape, Tensor, bail};
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

    /// Cosines and sines of all tokens.
    #[cfg(feature = "cuda")]
    pub(super) fn all(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Angles of a token: cosines and sines.
    fn of_token(&self, token: usize) -> (&[f32], &[f32]) {
        let angles = token * self.half..(token + 1) * self.half;
        (&self.cos[angles.clone()], &self.sin[angles])
    }

    fn rotate(&self, x: &[f32], heads: usize, sign: f32) -> Vec<f32> {
        let (half, width) = (self.half, 2 * self.half);
        let fill = |y: &mut [MaybeUninit<f32>]| {
            y.par_chunks_mut(heads * width).zip(x.par_chunks(heads * width)).enumerate().with_min_len(64).for_each(
                |(t, (y, x))| {
                    let angles = self.of_token(t);
                    for (y, x) in y.chunks_mut(width).zip(x.chunks(width)) {
                        let (y1, y2) = y.split_at_mut(half);
                        for ((y1, y2), turned) in y1.iter_mut().zip(y2).zip(turned(x.split_at(half), angles, sign)) {
                            y1.write(turned.0);
                            y2.write(turned.1);
                        }
                    }
                },
            );
        };
        // SAFETY: `x` has whole heads, and both halves of each are written.
        unsafe { filled(x.len(), fill) }
    }

    fn rotate_in_place(&self, x: &mut [f32], heads: usize) {
        let (half, width) = (self.half, 2 * self.half);
        x.par_chunks_mut(heads * width).enumerate().with_min_len(64).for_each(|(t, x)| {
            let (cos, sin) = self.of_token(t);
            for x in x.chunks_mut(width) {
                let (x1, x2) = x.split_at_mut(half);
                for ((x1, x2), (cos, sin)) in x1.iter_mut().zip(x2).zip(cos.iter().zip(sin)) {
                    (*x1, *x2) = pair(*x1, *x2, (*cos, *sin));
                }
            }
        });
    }
}

/// A pair turned by an angle.
#[inline(always)]
fn pair(x1: f32, x2: f32, (cos, sin): (f32, f32)) -> (f32, f32) {
    (x1 * cos - x2 * sin, x2 * cos + x1 * sin)
}

/// The pairs of a head turned by the angles of its token, or back where `sign` is -1.
fn turned<'a>(
    (x1, x2): (&'a [f32], &'a [f32]),
    (cos, sin): (&'a [f32], &'a [f32]),
    sign: f32,
) -> impl Iterator<Item = (f32, f32)> + use<'a> {
    let angles = cos.iter().zip(sin);
    x1.iter().zip(x2).zip(angles).map(move |((x1, x2), (cos, sin))| pair(*x1, *x2, (*cos, sign * sin)))
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
    check(x, table)?;
    x.contiguous()?.apply_op1(Rope(Arc::clone(table)))
}

/// As [`rope`]; outside any graph on the CPU without a copy, so that all who share the memory of `x` see it turned.
///
/// # Errors
/// As of [`rope`].
pub fn rope_in_place(x: Tensor, table: &Arc<RopeTable>) -> Result<Tensor> {
    check(&x, table)?;
    if x.track_op() || !x.device().is_cpu() || !x.is_contiguous() {
        return rope(&x, table);
    }
    x.inplace_op1(&Rope(Arc::clone(table)))?;
    Ok(x)
}

fn check(x: &Tensor, table: &RopeTable) -> Result<()> {
    let (t, _, width) = x.dims3()?;
    if width != 2 * table.half || t * table.half != table.cos.len() {
        bail!(
            "rope: expected {} tokens of heads of {}, found {:?}",
            table.cos.len() / table.half.max(1),
            2 * table.half,
            x.shape()
        );
    }
    Ok(())
}

impl InplaceOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let heads = layout.dims()[1];
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(x), Some((from, to))) => self.0.rotate_in_place(&mut x[from..to], heads),
            _ => bail!("rope: expected f32 in one piece, found {:?}", layout.shape()),
        }
        Ok(())
    }
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
