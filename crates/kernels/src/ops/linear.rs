//! Linear maps: a frozen or trained weight, a bias, and a low-rank update (LoRA, arXiv 2106.09685) gated per token.

use super::rounded::{self, Back, Update, UpdateGradients};
use super::row_update::{DOWN_ROWS, RowUpdate};
use super::rows::Rows;
use crate::bf16::{BLOCK, Format, Rounded};
use crate::cpu::{self, View, filled, gemm, gemm_into, output, rows_of, slice, tensor, transposed, with_values};
#[cfg(feature = "cuda")]
use crate::cuda::{self, Mat, Precision, Product};
use crate::matrix::Matrix;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::Arc;

/// The weight of a linear map, `[out, in]`.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Never trained; stays in its storage format.
    Frozen(Arc<Matrix>),
    /// A tensor that may be a trained variable.
    Dense(Tensor),
}

impl Weight {
    /// `[out, in]`.
    ///
    /// # Errors
    /// When a dense weight is not of rank 2.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Frozen(m) => Ok((m.rows(), m.cols())),
            Self::Dense(w) => w.dims2(),
        }
    }

    /// Whether its products are of rounded numbers.
    pub fn is_packed(&self) -> bool {
        matches!(self, Self::Frozen(matrix) if matrix.packed().is_some())
    }

    /// Whether its products are of bf16 numbers.
    pub(super) fn is_bf16(&self) -> bool {
        matches!(self, Self::Frozen(matrix) if matrix.packed_bf16().is_some())
    }
}

/// `y[rows] += scale * (x[rows] A^T) B^T`: an update of rank r at the adapted tokens only.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `[r, in]`.
    pub a: Tensor,
    /// `[out, r]`.
    pub b: Tensor,
    /// `lora_alpha / r`.
    pub scale: f32,
    /// Adapted tokens, ascending. Without any, the result is that of the plain map, bit for bit.
    pub rows: Arc<Rows>,
}

/// `y = x W^T + bias`, plus the low-rank update at its tokens.
///
/// # Shapes
/// `x: [T, in]` -> `[T, out]`.
///
/// # Errors
/// When shapes disagree or a row of the update is outside T.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>, update: Option<&LowRank>) -> Result<Tensor> {
    let (out, input) = weight.dims()?;
    let (t, width) = x.dims2()?;
    if width != input {
        bail!("linear: expected rows of {input}, found {:?}", x.shape());
    }
    if let Some(bias) = bias
        && bias.dims() != [out]
    {
        bail!("linear: expected a bias of [{out}], found {:?}", bias.shape());
    }
    let x = x.contiguous()?;
    let update = update.filter(|u| !u.rows.is_empty());
    update.map_or(Ok(()), |update| check_update(update, (out, input), t))?;
    let y = match (weight, update) {
        (Weight::Frozen(w), None) => x.apply_op1(Frozen(Arc::clone(w)))?,
        (Weight::Frozen(w), Some(u)) => {
            let rounds = w.packed_bf16().is_some() && [&x, &u.a, &u.b].into_iter().any(Tensor::track_op);
            let op = Adapted { weight: Arc::clone(w), scale: u.scale, rows: Arc::clone(&u.rows), rounds };
            x.apply_op3(&u.a.contiguous()?, &u.b.contiguous()?, op)?
        }
        (Weight::Dense(w), None) => x.apply_op2(&w.contiguous()?, Dense)?,
        (Weight::Dense(_), Some(_)) => bail!("linear: a low-rank update needs a frozen weight"),
    };
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// What an update asks of its map and of `t` tokens.
pub(super) fn check_update(u: &LowRank, (out, input): (usize, usize), t: usize) -> Result<()> {
    let rank = u.a.dim(0)?;
    if u.a.dims() != [rank, input]
        || u.b.dims() != [out, rank]
        || u.rows.iter().any(|r| *r as usize >= t)
        || !u.rows.is_sorted_by(|a, b| a < b)
    {
        bail!("linear: update A {:?}, B {:?} on a map [{out}, {input}] of {t} tokens", u.a.shape(), u.b.shape());
    }
    Ok(())
}

struct Frozen(Arc<Matrix>);

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let t = layout.dims()[0];
        Ok(output(self.0.forward(slice(storage, layout, "linear")?, t), (t, self.0.rows())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        let ((gpu, x), t) = (cuda::operand(s, l, "linear")?, l.dims()[0]);
        // SAFETY: `linear` has compared the shapes.
        let y = unsafe { self.0.on(gpu)?.forward(gpu, x, (t, self.0.rows(), self.0.cols()))? };
        Ok(gpu.output(y, (t, self.0.rows())))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let t = x.dims()[0];
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(dy)? {
            let d = cuda::Read::of(dy)?;
            // SAFETY: a gradient has the shape of what it is of.
            let dx = unsafe { self.0.on(gpu)?.backward(gpu, d.pointer, (t, self.0.rows(), self.0.cols()))? };
            return Ok(Some(gpu.tensor(dx, x.shape())));
        }
        Ok(Some(tensor(with_values(dy, |dy| self.0.backward(dy, t))?, x.shape())?))
    }
}

struct Dense;

impl CustomOp2 for Dense {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(s1, l1, "linear")?, slice(s2, l2, "linear")?);
        let (t, input, out) = (l1.dims()[0], l1.dims()[1], l2.dims()[0]);
        let mut y = vec![0f32; t * out];
        gemm(&mut y, out, (t, out, input), rows_of(x, input), transposed(w, input), false);
        Ok(output(y, (t, out)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let ((gpu, x), (_, w)) = (cuda::operand(s1, l1, "linear")?, cuda::operand(s2, l2, "linear")?);
        let (t, input, out) = (l1.dims()[0], l1.dims()[1], l2.dims()[0]);
        let y = gpu.alloc(t * out)?;
        let (a, b) = (Mat::rows(x, input), Mat::transposed(w, input));
        // SAFETY: `linear` has compared the shapes; `y` was made of its size.
        unsafe { Product::new(Precision::F32, (t, out, input), a, b, gpu.pointer(&y)).run(gpu)? };
        Ok(gpu.output(y, (t, out)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((t, input), out) = (x.dims2()?, w.dim(0)?);
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(dy)? {
            let (x_at, w_at, dy_at) = (cuda::Read::of(x)?, cuda::Read::of(w)?, cuda::Read::of(dy)?);
            let product = |like: &Tensor, mnk, a, b| -> Result<Option<Tensor>> {
                let c = gpu.alloc(like.elem_count())?;
                // SAFETY: a gradient has the shape of what it is of; this one was made of its size.
                unsafe { Product::new(Precision::F32, mnk, a, b, gpu.pointer(&c)).run(gpu)? };
                Ok(Some(gpu.tensor(c, like.shape())))
            };
            let (dy_rows, dy_columns) = (Mat::rows(dy_at.pointer, out), Mat::transposed(dy_at.pointer, out));
            let (mut dx, mut dw) = (None, None);
            if x.track_op() {
                dx = product(x, (t, input, out), dy_rows, Mat::rows(w_at.pointer, input))?;
            }
            if w.track_op() {
                dw = product(w, (out, input, t), dy_columns, Mat::rows(x_at.pointer, input))?;
            }
            return Ok((dx, dw));
        }
        let dx = if x.track_op() {
            let mut dx = vec![0f32; t * input];
            with_values(dy, |dy| {
                with_values(w, |w| gemm(&mut dx, input, (t, input, out), rows_of(dy, out), rows_of(w, input), false))
            })??;
            Some(tensor(dx, x.shape())?)
        } else {
            None
        };
        let dw = if w.track_op() {
            let mut dw = vec![0f32; out * input];
            with_values(dy, |dy| {
                with_values(x, |x| gemm(&mut dw, input, (out, input, t), transposed(dy, out), rows_of(x, input), false))
            })??;
            Some(tensor(dw, w.shape())?)
        } else {
            None
        };
        Ok((dx, dw))
    }
}

struct Adapted {
    weight: Arc<Matrix>,
    scale: f32,
    rows: Arc<Rows>,
    /// The update's products are of bf16 numbers in the forward pass too.
    rounds: bool,
}

/// The rows `rows` of `x [_, width]`, one after the other.
fn gather<'a>(x: &'a [f32], width: usize, rows: &[u32]) -> Cow<'a, [f32]> {
    if rows.len() * width == x.len() {
        return Cow::Borrowed(x);
    }
    let mut gathered = Vec::with_capacity(rows.len() * width);
    for row in rows {
        gathered.extend_from_slice(&x[*row as usize * width..(*row as usize + 1) * width]);
    }
    Cow::Owned(gathered)
}

/// `a b`, `[m, k] x [k, n]`.
fn product((m, n, k): (usize, usize, usize), a: View<'_>, b: View<'_>) -> Vec<f32> {
    // SAFETY: a product writes all its outputs.
    unsafe { filled(m * n, |y| gemm_into(y, n, (m, n, k), a, b)) }
}

/// Gradients of a map with an update.
struct Gradients {
    dx: Option<Vec<f32>>,
    da: Vec<f32>,
    db: Vec<f32>,
}

/// `x[rows] += values`.
fn scatter_add(x: &mut [f32], width: usize, rows: &[u32], values: &[f32]) {
    for (row, values) in rows.iter().zip(values.chunks(width)) {
        cpu::axpy(1.0, values, &mut x[*row as usize * width..(*row as usize + 1) * width]);
    }
}

impl Adapted {
    /// `y[rows] += scale * (x[rows] A^T) B^T`.
    fn add_update(&self, y: &mut [f32], x: &[f32], update: &RowUpdate<'_>) {
        let (input, out) = (self.weight.cols(), self.weight.rows());
        let mut adapted = Vec::with_capacity(self.rows.len());
        let (mut rest, mut first) = (y, 0);
        for row in self.rows.iter() {
            let (_, from_row) = std::mem::take(&mut rest).split_at_mut((*row as usize - first) * out);
            let (y, after) = from_row.split_at_mut(out);
            adapted.push((*row as usize, y));
            (rest, first) = (after, *row as usize + 1);
        }
        adapted.par_chunks_mut(DOWN_ROWS).for_each(|rows| {
            let inputs: Vec<&[f32]> = rows.iter().map(|(row, _)| &x[row * input..(row + 1) * input]).collect();
            let downs = update.downs(&inputs);
            for panel in 0..out.div_ceil(BLOCK) {
                for ((_, y), down) in rows.iter_mut().zip(downs.chunks(update.rank)) {
                    let end = out.min((panel + 1) * BLOCK);
                    update.add(down, panel, &mut y[panel * BLOCK..end]);
                }
            }
        });
    }
}

impl Adapted {
    fn update<'a>(&'a self, (a, b): (&'a [f32], &'a [f32])) -> Update<'a> {
        Update { a, b, rank: a.len() / self.weight.cols(), scale: self.scale, rows: &self.rows }
    }

    /// As [`Self::gradients`], with products of bf16 numbers.
    fn rounded_gradients(&self, (x, wants_dx): (&[f32], bool), ab: (&[f32], &[f32]), dy: &[f32]) -> Gradients {
        let (x, dy) =
            (Rounded::of(Format::Bf16, x, self.weight.cols()), Rounded::of(Format::Bf16, dy, self.weight.rows()));
        let update = self.update(ab);
        let downs = update.columns_of_downs(&x);
        let (back, UpdateGradients { da, db }) = Back::adapted(&self.weight, (update, &x, &downs), &dy);
        Gradients { dx: wants_dx.then(|| Back::by_rows(&[back])), da, db }
    }

    fn gradients(&self, (x, wants_dx): (&[f32], bool), (a, b): (&[f32], &[f32]), dy: &[f32]) -> Gradients {
        if self.weight.packed_bf16().is_some() {
            return self.rounded_gradients((x, wants_dx), (a, b), dy);
        }
        let (input, out, n) = (self.weight.cols(), self.weight.rows(), self.rows.len());
        let (t, rank) = (x.len() / input, a.len() / input);
        let (x_rows, dy_rows) = (gather(x, input, &self.rows), gather(dy, out, &self.rows));
        let scaled = |mut values: Vec<f32>| {
            values.iter_mut().for_each(|value| *value *= self.scale);
            values
        };
        let down = scaled(product((n, rank, input), rows_of(&x_rows, input), transposed(a, input)));
        let d_down = scaled(product((n, rank, out), rows_of(&dy_rows, out), rows_of(b, rank)));
        let db = product((out, rank, n), transposed(&dy_rows, out), rows_of(&down, rank));
        let da = product((rank, input, n), transposed(&d_down, rank), rows_of(&x_rows, input));
        let dx = wants_dx.then(|| {
            let mut dx = self.weight.backward(dy, t);
            if n == t {
                gemm(&mut dx, input, (n, input, rank), rows_of(&d_down, rank), rows_of(a, input), true);
            } else {
                let through = product((n, input, rank), rows_of(&d_down, rank), rows_of(a, input));
                scatter_add(&mut dx, input, &self.rows, &through);
            }
            dx
        });
        Gradients { dx, da, db }
    }
}

#[cfg(feature = "cuda")]
impl Adapted {
    /// The map and its update on the GPU, A and B at these addresses.
    fn on(&self, gpu: &cuda::Gpu, (a, b): (cuda::Pointer, cuda::Pointer), rank: usize) -> Result<cuda::Map<'_>> {
        let update = cuda::Update { a, b, rank, scale: self.scale, rows: self.rows.on(gpu)? };
        let dims = (self.weight.rows(), self.weight.cols());
        Ok(cuda::Map { weight: self.weight.on(gpu)?, dims, update: Some(update) })
    }

    fn backward_on(
        &self,
        gpu: &cuda::Gpu,
        [x, a, b]: [&Tensor; 3],
        dy: &Tensor,
        wants: [bool; 3],
    ) -> Result<[Option<Tensor>; 3]> {
        let (x_at, dy_at) = (cuda::Read::of(x)?, cuda::Read::of(dy)?);
        let (a_at, b_at) = (cuda::Read::of(a)?, cuda::Read::of(b)?);
        let map = self.on(gpu, (a_at.pointer, b_at.pointer), a.dims()[0])?;
        // SAFETY: `linear` has compared the shapes; a gradient has that of what it is of.
        let found = unsafe { map.backward(gpu, (x_at.pointer, dy_at.pointer), x.dims()[0], wants[0])? };
        let dx = found.dx.map(|dx| gpu.tensor(dx, x.shape()));
        let (da, db) = (gpu.tensor(found.da, a.shape()), gpu.tensor(found.db, b.shape()));
        Ok([dx, Some(da).filter(|_| wants[1]), Some(db).filter(|_| wants[2])])
    }
}

impl CustomOp3 for Adapted {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, a, b) = (slice(s1, l1, "linear")?, slice(s2, l2, "linear")?, slice(s3, l3, "linear")?);
        let (t, rank, out) = (l1.dims()[0], l2.dims()[0], l3.dims()[0]);
        if let Some(packed) = self.weight.packed_bf16().filter(|_| self.rounds) {
            let x = Rounded::of(Format::Bf16, x, self.weight.cols());
            return Ok(output(rounded::forward(packed, Some(self.update((a, b))), &x).y, (t, out)));
        }
        let mut y = self.weight.forward(x, t);
        self.add_update(&mut y, x, &RowUpdate::new((a, b), rank, self.scale));
        Ok(output(y, (t, out)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (gpu, x) = cuda::operand(s1, l1, "linear")?;
        let (a, b) = (cuda::operand(s2, l2, "linear")?.1, cuda::operand(s3, l3, "linear")?.1);
        let t = l1.dims()[0];
        // SAFETY: `linear` has compared the shapes.
        let y = unsafe { self.on(gpu, (a, b), l2.dims()[0])?.forward(gpu, x, t)? };
        Ok(gpu.output(y, (t, self.weight.rows())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, da, db] = self.backward([x, a, b], dy, [x, a, b].map(Tensor::track_op))?;
        Ok((dx, da, db))
    }
}

impl Adapted {
    /// Gradients by `x`, A and B, those that are wanted.
    fn backward(&self, [x, a, b]: [&Tensor; 3], dy: &Tensor, wants: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(dy)? {
            return self.backward_on(gpu, [x, a, b], dy, wants);
        }
        let found = with_values(x, |x| {
            with_values(dy, |dy| with_values(a, |a| with_values(b, |b| self.gradients((x, wants[0]), (a, b), dy))))
        })????;
        let dx = found.dx.map(|dx| tensor(dx, x.shape())).transpose()?;
        let wanted = |wants: bool, gradient: Vec<f32>, of: &Tensor| {
            if wants { tensor(gradient, of.shape()).map(Some) } else { Ok(None) }
        };
        Ok([dx, wanted(wants[1], found.da, a)?, wanted(wants[2], found.db, b)?])
    }
}

/// Gradients of a map of a frozen weight by `x` `[T, in]`, and by A and B where there is an update.
pub(super) fn linear_backward(
    weight: &Arc<Matrix>,
    update: Option<&LowRank>,
    x: &Tensor,
    dy: &Tensor,
) -> Result<(Tensor, Option<[Tensor; 2]>)> {
    let missing = || candle_core::Error::Msg("linear: no gradient where one is wanted".into());
    let Some(update) = update.filter(|update| !update.rows.is_empty()) else {
        return Ok((Frozen(Arc::clone(weight)).bwd(x, x, dy)?.ok_or_else(missing)?, None));
    };
    let op = Adapted { weight: Arc::clone(weight), scale: update.scale, rows: Arc::clone(&update.rows), rounds: true };
    match op.backward([x, &update.a, &update.b], dy, [true; 3])? {
        [Some(dx), Some(da), Some(db)] => Ok((dx, Some([da, db]))),
        _ => Err(missing()),
    }
}
