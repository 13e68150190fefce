//! Cross-entropy with the output head: logits exist for some rows at a time (cuda/losses.cuh).

use super::pointwise::to_bf16;
use super::{Arg, DeviceMatrix, Gpu, Gradients2, Mat, Pointer, Precision, Product, at};
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use half::bf16;
use std::ops::Range;

/// Logits that exist at a time: 256 MiB.
const MOST_LOGITS: usize = 1 << 26;
const THREADS: u32 = 1024;

/// What a loss over rows of logits is taken with.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// The label of each row.
    pub(crate) labels: &'a [u32],
    /// `(V, D)`.
    pub(crate) head: (usize, usize),
    /// The cap of the logits, 0 for none.
    pub(crate) cap: f32,
}

/// Some rows with their logits, and the statistics of their softmax.
struct Part<'a> {
    rows: Rows<'a>,
    /// Which of the rows.
    range: Range<usize>,
    logits: CudaSlice<f32>,
    labels: CudaSlice<u32>,
    maxima: CudaSlice<f32>,
    sums: CudaSlice<f32>,
}

impl<'a> Rows<'a> {
    /// Runs `f` on the rows, as many at a time as logits may exist; `logits(range, to)` writes theirs, and the losses go to
    /// `nll`.
    ///
    /// # Safety
    /// `nll` leads to a number for each row, and `logits` writes those of its range.
    unsafe fn for_parts(
        &self,
        gpu: &Gpu,
        nll: Pointer,
        mut logits: impl FnMut(&Range<usize>, Pointer) -> Result<()>,
        mut f: impl FnMut(Part<'a>) -> Result<()>,
    ) -> Result<()> {
        let (m, v) = (self.labels.len(), self.head.0);
        let rows_of_part = (MOST_LOGITS / v).max(1);
        for first in (0..m).step_by(rows_of_part) {
            let range = first..(first + rows_of_part).min(m);
            let count = range.len();
            let part = Part {
                rows: *self,
                logits: gpu.alloc(count * v)?,
                labels: gpu.upload(&self.labels[range.clone()])?,
                maxima: gpu.alloc(count)?,
                sums: gpu.alloc(count)?,
                range,
            };
            logits(&part.range, gpu.pointer(&part.logits))?;
            let args = [
                Arg::Pointer(gpu.pointer(&part.logits)),
                Arg::Pointer(gpu.pointer(&part.labels)),
                Arg::Pointer(at(nll, first)),
                Arg::Pointer(gpu.pointer(&part.maxima)),
                Arg::Pointer(gpu.pointer(&part.sums)),
                Arg::Int(v as i32),
                Arg::Float(self.cap),
            ];
            // SAFETY: as the caller says; everything else was made of these sizes.
            unsafe { gpu.launch("cross_entropy", ((count, 1, 1), THREADS, 0), &args)? };
            f(part)?;
        }
        Ok(())
    }
}

impl Part<'_> {
    /// Writes the gradients of the losses by the logits to `to`, times `factors` where there are any (0: none).
    ///
    /// # Safety
    /// `to` leads to as many numbers as there are logits, of bf16 where `name` says so; `factors` to one for each row.
    unsafe fn slopes(&self, gpu: &Gpu, name: &'static str, to: Pointer, factors: Pointer) -> Result<()> {
        let args = [
            Arg::Pointer(gpu.pointer(&self.logits)),
            Arg::Pointer(to),
            Arg::Pointer(gpu.pointer(&self.labels)),
            Arg::Pointer(gpu.pointer(&self.maxima)),
            Arg::Pointer(gpu.pointer(&self.sums)),
            Arg::Pointer(factors),
            Arg::Int(self.rows.head.0 as i32),
            Arg::Float(self.rows.cap),
        ];
        // SAFETY: as the caller says; a number is read before it is written where both are the same.
        unsafe { gpu.launch(name, ((self.range.len(), 1, 1), THREADS, 0), &args) }
    }
}

/// Losses `[M]` with a frozen head, and their gradients by `x` where they are wanted.
///
/// # Safety
/// `x` leads to `[M, D]` numbers, and the head is `[V, D]`.
pub(crate) unsafe fn cross_entropy(
    gpu: &Gpu,
    x: Pointer,
    weight: &DeviceMatrix,
    rows: Rows<'_>,
    wants_gradient: bool,
) -> Result<(CudaSlice<f32>, Option<CudaSlice<f32>>)> {
    let (m, (v, d)) = (rows.labels.len(), rows.head);
    let nll = gpu.alloc(m)?;
    let gradient = wants_gradient.then(|| gpu.alloc::<f32>(m * d)).transpose()?;
    let logits = |range: &Range<usize>, to: Pointer| {
        let (x, t) = (at(x, range.start * d), range.len());
        // SAFETY: as the caller says.
        unsafe {
            if weight.is_bf16() {
                let rounded = to_bf16(gpu, x, t * d)?;
                weight.product(gpu, (gpu.pointer(&rounded), to), (t, v, d), false)
            } else {
                weight.product(gpu, (x, to), (t, v, d), false)
            }
        }
    };
    let with_part = |part: Part<'_>| {
        let Some(gradient) = &gradient else { return Ok(()) };
        let (t, dx) = (part.range.len(), at(gpu.pointer(gradient), part.range.start * d));
        let through = |slopes: Pointer| {
            let (a, b) = (Mat::rows(slopes, v), Mat::rows(weight.pointer(gpu), d));
            Product::new(weight.precision(), (t, d, v), a, b, dx)
        };
        // SAFETY: the slopes are as many as the logits, in the format of the products.
        unsafe {
            if weight.is_bf16() {
                let slopes = gpu.alloc::<bf16>(t * v)?;
                part.slopes(gpu, "cross_entropy_slopes_bf16", gpu.pointer(&slopes), 0)?;
                through(gpu.pointer(&slopes)).run(gpu)
            } else {
                let slopes = gpu.pointer(&part.logits);
                part.slopes(gpu, "cross_entropy_slopes", slopes, 0)?;
                through(slopes).run(gpu)
            }
        }
    };
    // SAFETY: as the caller says; there is a loss for each row.
    unsafe { rows.for_parts(gpu, gpu.pointer(&nll), logits, with_part)? };
    Ok((nll, gradient))
}

fn dense_logits(
    gpu: &Gpu,
    (x, w): (Pointer, Pointer),
    (v, d): (usize, usize),
) -> impl Fn(&Range<usize>, Pointer) -> Result<()> {
    move |range, to| {
        let (a, b) = (Mat::rows(at(x, range.start * d), d), Mat::transposed(w, d));
        // SAFETY: as the callers of what runs this say.
        unsafe { Product::new(Precision::F32, (range.len(), v, d), a, b, to).run(gpu) }
    }
}

/// Losses `[M]` with a head that is trained.
///
/// # Safety
/// `x` leads to `[M, D]` numbers, `w` to `[V, D]`.
pub(crate) unsafe fn dense_cross_entropy(
    gpu: &Gpu,
    (x, w): (Pointer, Pointer),
    rows: Rows<'_>,
) -> Result<CudaSlice<f32>> {
    let nll = gpu.alloc(rows.labels.len())?;
    // SAFETY: as the caller says; there is a loss for each row.
    unsafe { rows.for_parts(gpu, gpu.pointer(&nll), dense_logits(gpu, (x, w), rows.head), |_| Ok(()))? };
    Ok(nll)
}

/// Gradients of those losses by `x` and `w`, from the gradients `d_nll` of each.
///
/// # Safety
/// As of [`dense_cross_entropy`]; `d_nll` leads to a number for each row.
pub(crate) unsafe fn dense_cross_entropy_backward(
    gpu: &Gpu,
    (x, w, d_nll): (Pointer, Pointer, Pointer),
    rows: Rows<'_>,
    (wants_dx, wants_dw): (bool, bool),
) -> Result<Gradients2> {
    let (m, (v, d)) = (rows.labels.len(), rows.head);
    let nll = gpu.alloc::<f32>(m)?;
    let dx = wants_dx.then(|| gpu.alloc::<f32>(m * d)).transpose()?;
    let dw = wants_dw.then(|| gpu.zeros(v * d)).transpose()?;
    let with_part = |part: Part<'_>| {
        let (t, slopes, first) = (part.range.len(), gpu.pointer(&part.logits), part.range.start);
        // SAFETY: the slopes take the place of the logits; the gradients were made of their sizes.
        unsafe {
            part.slopes(gpu, "cross_entropy_slopes", slopes, at(d_nll, first))?;
            if let Some(dx) = &dx {
                let (a, b) = (Mat::rows(slopes, v), Mat::rows(w, d));
                Product::new(Precision::F32, (t, d, v), a, b, at(gpu.pointer(dx), first * d)).run(gpu)?;
            }
            if let Some(dw) = &dw {
                let (a, b) = (Mat::transposed(slopes, v), Mat::rows(at(x, first * d), d));
                let product = Product::new(Precision::F32, (v, d, t), a, b, gpu.pointer(dw));
                Product { add: true, ..product }.run(gpu)?;
            }
        }
        Ok(())
    };
    // SAFETY: as the caller says; there is a loss for each row.
    unsafe { rows.for_parts(gpu, gpu.pointer(&nll), dense_logits(gpu, (x, w), rows.head), with_part)? };
    Ok((dx, dw))
}
