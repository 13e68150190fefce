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
use std::sync::{Arc, OnceLock};

/// Cosine and sine of every angle of a run of tokens: `[T, H / 2]` each, f32, made where they are first used.
#[derive(Debug)]
pub struct RopeTable {
    positions: Vec<u32>,
    frequencies: Vec<f64>,
    on_host: OnceLock<[Vec<f32>; 2]>,
    #[cfg(feature = "cuda")]
    on_gpu: cuda::Beside<cuda::Uploaded<f32>>,
}

impl RopeTable {
    /// Angles `position * frequency` for `frequencies` (radians per position, H / 2 of them).
    pub fn new(positions: &[u32], frequencies: &[f64]) -> Self {
        Self {
            positions: positions.to_vec(),
            frequencies: frequencies.to_vec(),
            on_host: OnceLock::new(),
            #[cfg(feature = "cuda")]
            on_gpu: cuda::Beside::default(),
        }
    }

    /// H / 2.
    pub(super) fn half(&self) -> usize {
        self.frequencies.len()
    }

    pub(super) fn num_tokens(&self) -> usize {
        self.positions.len()
    }

    /// Cosines and sines of all tokens.
    pub(super) fn all(&self) -> &[Vec<f32>; 2] {
        self.on_host.get_or_init(|| {
            let half = self.half();
            // Packed rows begin anew again and again: each position's angles are found once.
            let mut first_of = HashMap::new();
            let [mut cos, mut sin] = [(); 2].map(|()| Vec::with_capacity(self.positions.len() * half));
            for (token, position) in self.positions.iter().enumerate() {
                match first_of.entry(*position) {
                    Entry::Occupied(first) => {
                        let first: usize = *first.get();
                        cos.extend_from_within(first * half..(first + 1) * half);
                        sin.extend_from_within(first * half..(first + 1) * half);
                    }
                    Entry::Vacant(place) => {
                        place.insert(token);
                        let angles = || self.frequencies.iter().map(|f| f64::from(*position) * f);
                        cos.extend(angles().map(|a| a.cos() as f32));
                        sin.extend(angles().map(|a| a.sin() as f32));
                    }
                }
            }
            [cos, sin]
        })
    }

    /// Angles of a token: cosines and sines.
    fn of_token(&self, token: usize) -> (&[f32], &[f32]) {
        let [cos, sin] = self.all();
        let angles = token * self.half()..(token + 1) * self.half();
        (&cos[angles.clone()], &sin[angles])
    }

    fn rotate(&self, x: &[f32], heads: usize, sign: f32) -> Vec<f32> {
        let (half, width) = (self.half(), 2 * self.half());
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
        let (half, width) = (self.half(), 2 * self.half());
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
    /// `x` and `y`, which may be the same, lead to `[tokens, heads, H]` numbers, and the table was made for so many tokens.
    unsafe fn rotate_on(
        &self,
        gpu: &cuda::Gpu,
        (x, y): (cuda::Pointer, cuda::Pointer),
        (tokens, heads): (usize, usize),
        sign: f32,
    ) -> Result<()> {
        let cosines = self.on_gpu.0.get_or_make(gpu, || cuda::angles(gpu, &self.positions, &self.frequencies))?;
        let table = (cosines, cuda::at(cosines, self.positions.len() * self.half()));
        // SAFETY: as the caller says; sines lie behind cosines.
        unsafe { cuda::rope(gpu, (x, y), table, (tokens, heads, self.half()), sign) }
    }

    /// As [`Self::rotate_on`], into memory of its own.
    unsafe fn rotated_on(
        &self,
        gpu: &cuda::Gpu,
        x: cuda::Pointer,
        (tokens, heads): (usize, usize),
        sign: f32,
    ) -> Result<CudaSlice<f32>> {
        let y = gpu.alloc(2 * tokens * heads * self.half())?;
        // SAFETY: as the caller says; `y` was made of the size of `x`.
        unsafe { self.rotate_on(gpu, (x, gpu.pointer(&y)), (tokens, heads), sign)? };
        Ok(y)
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

/// As [`rope`]; outside any graph without a copy, so that all who share the memory of `x` see it turned.
///
/// # Errors
/// As of [`rope`].
pub fn rope_in_place(x: Tensor, table: &Arc<RopeTable>) -> Result<Tensor> {
    check(&x, table)?;
    if x.track_op() || !x.is_contiguous() {
        return rope(&x, table);
    }
    x.inplace_op1(&Rope(Arc::clone(table)))?;
    Ok(x)
}

fn check(x: &Tensor, table: &RopeTable) -> Result<()> {
    let (t, _, width) = x.dims3()?;
    if width != 2 * table.half() || t != table.num_tokens() {
        bail!("rope: expected {} tokens of heads of {}, found {:?}", table.num_tokens(), 2 * table.half(), x.shape());
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let (gpu, x) = cuda::operand(storage, layout, "rope")?;
        // SAFETY: `rope_in_place` has compared the shape with the table.
        unsafe { self.0.rotate_on(gpu, (x, x), (layout.dims()[0], layout.dims()[1]), 1.0) }
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
        let y = unsafe { self.0.rotated_on(gpu, x, (l.dims()[0], l.dims()[1]), 1.0)? };
        Ok(gpu.output(y, l.shape()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(dy)? {
            let d = cuda::Read::of(dy)?;
            // SAFETY: a gradient has the shape of what it is of.
            let dx = unsafe { self.0.rotated_on(gpu, d.pointer, (x.dims()[0], x.dims()[1]), -1.0)? };
            return Ok(Some(gpu.tensor(dx, x.shape())));
        }
        // A rotation's transpose is the rotation back.
        let dx = with_values(dy, |dy| self.0.rotate(dy, x.dims()[1], -1.0))?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
