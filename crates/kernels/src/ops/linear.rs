//! Linear maps: a frozen or trained weight, a bias, and a low-rank update (LoRA, arXiv 2106.09685) gated per token.

use crate::cpu::{self, fma, gemm, output, rows_of, slice, tensor, transposed, wanted, with_values};
use crate::matrix::Matrix;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
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
    pub rows: Arc<Vec<u32>>,
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
    if let Some(u) = update {
        let rank = u.a.dim(0)?;
        if u.a.dims() != [rank, input]
            || u.b.dims() != [out, rank]
            || u.rows.iter().any(|r| *r as usize >= t)
            || !u.rows.is_sorted_by(|a, b| a < b)
        {
            bail!("linear: update A {:?}, B {:?} on a map [{out}, {input}] of {t} tokens", u.a.shape(), u.b.shape());
        }
    }
    let y = match (weight, update) {
        (Weight::Frozen(w), None) => x.apply_op1(Frozen(Arc::clone(w)))?,
        (Weight::Frozen(w), Some(u)) => {
            let op = Adapted { weight: Arc::clone(w), scale: u.scale, rows: Arc::clone(&u.rows) };
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

struct Frozen(Arc<Matrix>);

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let t = layout.dims()[0];
        Ok(output(self.0.forward(slice(storage, layout, "linear")?, t), (t, self.0.rows())))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let t = x.dims()[0];
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

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((t, input), out) = (x.dims2()?, w.dim(0)?);
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
    rows: Arc<Vec<u32>>,
}

/// The rows `rows` of `x [_, width]`, one after the other.
fn gather(x: &[f32], width: usize, rows: &[u32]) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(rows.len() * width);
    for row in rows {
        gathered.extend_from_slice(&x[*row as usize * width..(*row as usize + 1) * width]);
    }
    gathered
}

/// `x[rows] += scale * values`.
fn scatter_add(x: &mut [f32], width: usize, rows: &[u32], scale: f32, values: &[f32]) {
    for (row, values) in rows.iter().zip(values.chunks(width)) {
        cpu::axpy(scale, values, &mut x[*row as usize * width..(*row as usize + 1) * width]);
    }
}

impl Adapted {
    /// `y[rows] += scale * (x[rows] A^T) B^T`. The rank is too small for the blocks of a product: each row goes through both
    /// matrices by itself, and is the same bits in any company.
    fn add_update(&self, y: &mut [f32], x: &[f32], (a, b): (&[f32], &[f32]), rank: usize) {
        let (input, out) = (self.weight.cols(), self.weight.rows());
        let mut scaled = vec![0f32; rank * out]; // scale B^T
        for (i, b) in b.chunks(rank).enumerate() {
            for (r, b) in b.iter().enumerate() {
                scaled[r * out + i] = self.scale * b;
            }
        }
        let mut adapted = Vec::with_capacity(self.rows.len());
        let (mut rest, mut first) = (y, 0);
        for row in self.rows.iter() {
            let (_, from_row) = std::mem::take(&mut rest).split_at_mut((*row as usize - first) * out);
            let (y, after) = from_row.split_at_mut(out);
            adapted.push((*row as usize, y));
            (rest, first) = (after, *row as usize + 1);
        }
        adapted.into_par_iter().with_min_len(8).for_each(|(row, y)| {
            let x = &x[row * input..(row + 1) * input];
            for (a, b) in a.chunks(4 * input).zip(scaled.chunks(4 * out)) {
                let mut down = [0f32; 4];
                down.iter_mut().zip(a.chunks(input)).for_each(|(down, a)| *down = cpu::dot(a, x));
                let mut columns = b.chunks_exact(out);
                if let [Some(b0), Some(b1), Some(b2), Some(b3)] = std::array::from_fn(|_| columns.next()) {
                    // Four at a time: `y` is read and written once for all of them.
                    for ((((y, b0), b1), b2), b3) in y.iter_mut().zip(b0).zip(b1).zip(b2).zip(b3) {
                        *y = fma(down[0], *b0, fma(down[1], *b1, fma(down[2], *b2, fma(down[3], *b3, *y))));
                    }
                } else {
                    b.chunks(out).zip(down).for_each(|(b, down)| cpu::axpy(down, b, y));
                }
            }
        });
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
        let mut y = self.weight.forward(x, t);
        self.add_update(&mut y, x, (a, b), rank);
        Ok(output(y, (t, out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((t, input), (out, rank), n) = (x.dims2()?, b.dims2()?, self.rows.len());
        let x_rows = with_values(x, |x| gather(x, input, &self.rows))?;
        let mut dy_rows = with_values(dy, |dy| gather(dy, out, &self.rows))?;
        dy_rows.iter_mut().for_each(|g| *g *= self.scale);
        let (a_values, b_values) = (with_values(a, <[f32]>::to_vec)?, with_values(b, <[f32]>::to_vec)?);
        let mut down = vec![0f32; n * rank]; // x A^T
        gemm(&mut down, rank, (n, rank, input), rows_of(&x_rows, input), transposed(&a_values, input), false);
        let mut d_down = vec![0f32; n * rank]; // dy B
        gemm(&mut d_down, rank, (n, rank, out), rows_of(&dy_rows, out), rows_of(&b_values, rank), false);
        let mut db = vec![0f32; out * rank];
        gemm(&mut db, rank, (out, rank, n), transposed(&dy_rows, out), rows_of(&down, rank), false);
        let mut da = vec![0f32; rank * input];
        gemm(&mut da, input, (rank, input, n), transposed(&d_down, rank), rows_of(&x_rows, input), false);
        let dx = if x.track_op() {
            let mut dx = with_values(dy, |dy| self.weight.backward(dy, t))?;
            let mut through = vec![0f32; n * input];
            gemm(&mut through, input, (n, input, rank), rows_of(&d_down, rank), rows_of(&a_values, input), false);
            scatter_add(&mut dx, input, &self.rows, 1.0, &through);
            Some(tensor(dx, x.shape())?)
        } else {
            None
        };
        Ok((dx, wanted(a, || da)?, wanted(b, || db)?))
    }
}
