//! Cross-entropy fused with the output head: logits exist for a block of the vocabulary at a time, never `[T, V]`.
//!
//! With a frozen head the gradient is found in the same pass as the loss: the gradient of a token's loss by its
//! state is the mean of the head's rows under the softmax, minus the label's row, and that mean is accumulated
//! online as in FlashAttention (arXiv 2205.14135), the head's rows standing for both keys and values.

use super::Weight;
use crate::cpu::{View, as_uninit, exp, gemm, output, rows_of, slice, tensor, transposed, wanted, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::matrix::Matrix;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::{Arc, Mutex};

/// The output head: its weight `[V, D]` and the cap of its logits.
#[derive(Debug, Clone)]
pub struct Head {
    /// `[V, D]`.
    pub weight: Weight,
    /// Logits become `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
}

impl Head {
    fn cap(&self, logits: &mut [f32]) {
        if let Some(cap) = self.softcap {
            logits.par_iter_mut().for_each(|l| *l = cap * (*l / cap).tanh());
        }
    }

    /// Derivative of the cap, from the capped logit.
    fn slope(&self, logit: f32) -> f32 {
        self.softcap.map_or(1.0, |cap| 1.0 - (logit / cap) * (logit / cap))
    }
}

/// All logits of each state: `x W^T`, capped.
///
/// # Shapes
/// `x: [M, D]` -> `[M, V]`.
///
/// # Errors
/// When D differs from the head's.
pub fn logits(x: &Tensor, head: &Head) -> Result<Tensor> {
    let y = super::linear(x, &head.weight, None, None)?;
    match head.softcap {
        Some(cap) => (y / f64::from(cap))?.tanh()? * f64::from(cap),
        None => Ok(y),
    }
}

/// Negative log-likelihood of each label.
///
/// # Shapes
/// `x: [M, D]`, M labels -> `[M]`, nats.
///
/// # Errors
/// When a label is outside V or the shapes disagree.
pub fn cross_entropy(x: &Tensor, head: &Head, labels: &[u32]) -> Result<Tensor> {
    let ((m, d), (v, width)) = (x.dims2()?, head.weight.dims()?);
    if d != width || labels.len() != m {
        bail!("cross_entropy: states {:?}, {} labels, head [{v}, {width}]", x.shape(), labels.len());
    }
    if let Some(label) = labels.iter().find(|label| **label as usize >= v) {
        bail!("cross_entropy: label {label} is outside the vocabulary of {v}");
    }
    let (x, labels) = (x.contiguous()?, labels.to_vec());
    match &head.weight {
        Weight::Frozen(w) => {
            let wants_gradient = x.track_op();
            let op = FrozenHead {
                weight: Arc::clone(w),
                head: head.clone(),
                labels,
                wants_gradient,
                gradient: Mutex::new(None),
            };
            x.apply_op1(op)
        }
        Weight::Dense(w) => x.apply_op2(&w.contiguous()?, DenseHead { head: head.clone(), labels }),
    }
}

/// Running softmax statistics of M rows of logits.
struct Softmax {
    max: Vec<f32>,
    /// f64: tens of thousands of small terms added to a large f32 sum would be lost one by one.
    sum: Vec<f64>,
    label_logit: Vec<f32>,
}

impl Softmax {
    fn new(m: usize) -> Self {
        Self { max: vec![f32::NEG_INFINITY; m], sum: vec![0.0; m], label_logit: vec![0.0; m] }
    }

    /// Takes the logits `[m, n]` of vocabulary rows `first..first + n` and turns each into
    /// `exp(logit - running max)`; rows of `carried` are rescaled to the new maximum.
    fn take(&mut self, logits: &mut [f32], n: usize, first: usize, labels: &[u32], carried: &mut [f32]) {
        let width = carried.len() / labels.len().max(1);
        let mut spare = vec![0f32; if width == 0 { labels.len() } else { 0 }];
        let carried: Vec<&mut [f32]> =
            if width == 0 { spare.chunks_mut(1).collect() } else { carried.chunks_mut(width).collect() };
        let rows = logits.par_chunks_mut(n).zip(carried).zip(labels);
        let state = self.max.par_iter_mut().zip(&mut self.sum).zip(&mut self.label_logit);
        rows.zip(state).for_each(|(((logits, carried), label), ((max, sum), label_logit))| {
            let label = *label as usize;
            if (first..first + n).contains(&label) {
                *label_logit = logits[label - first];
            }
            let new_max = logits.iter().copied().fold(*max, f32::max);
            let rescale = (*max - new_max).exp();
            carried.iter_mut().for_each(|c| *c *= rescale);
            *max = new_max;
            logits.iter_mut().for_each(|l| *l = exp(*l - new_max));
            let block: f64 = logits.chunks(64).map(|part| f64::from(part.iter().sum::<f32>())).sum();
            *sum = *sum * f64::from(rescale) + block;
        });
    }

    fn nll(&self) -> Vec<f32> {
        let rows = self.max.iter().zip(&self.sum).zip(&self.label_logit);
        rows.map(|((max, sum), label)| (f64::from(*max) + sum.ln() - f64::from(*label)) as f32).collect()
    }
}

/// The rows of a loss, for the GPU.
#[cfg(feature = "cuda")]
fn rows_on<'a>(head: &Head, labels: &'a [u32]) -> Result<cuda::Rows<'a>> {
    Ok(cuda::Rows { labels, head: head.weight.dims()?, cap: head.softcap.unwrap_or(0.0) })
}

struct FrozenHead {
    weight: Arc<Matrix>,
    head: Head,
    labels: Vec<u32>,
    wants_gradient: bool,
    /// d nll / d x, `[M, D]`, kept from the forward pass.
    gradient: Mutex<Option<Tensor>>,
}

impl FrozenHead {
    fn run(&self, x: &[f32], d: usize) -> (Vec<f32>, Vec<f32>) {
        let m = self.labels.len();
        let mut softmax = Softmax::new(m);
        let mut mean = vec![0f32; if self.wants_gradient { m * d } else { 0 }];
        let mut scratch = Vec::new();
        self.weight.for_blocks(|block| {
            let (first, n) = (block.first, block.rows);
            scratch.resize(m * n, 0f32);
            // SAFETY: a product writes numbers only.
            block.forward(x, m, unsafe { as_uninit(&mut scratch) }, n);
            self.head.cap(&mut scratch);
            let slopes = self.head.softcap.filter(|_| self.wants_gradient).map(|_| scratch.clone());
            softmax.take(&mut scratch, n, first, &self.labels, &mut mean);
            if self.wants_gradient {
                if let Some(capped) = slopes {
                    scratch.iter_mut().zip(capped).for_each(|(p, l)| *p *= self.head.slope(l));
                }
                block.add_backward(&scratch, m, &mut mean);
            }
        });
        let mut row = vec![0f32; d];
        for (i, mean) in mean.chunks_mut(d).enumerate() {
            self.weight.dequantise_row(self.labels[i] as usize, &mut row);
            let slope = self.head.slope(softmax.label_logit[i]);
            mean.iter_mut().zip(&row).for_each(|(g, w)| *g = *g / softmax.sum[i] as f32 - slope * w);
        }
        (softmax.nll(), mean)
    }
}

impl CustomOp1 for FrozenHead {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (nll, gradient) = self.run(slice(storage, layout, "cross_entropy")?, layout.dims()[1]);
        if self.wants_gradient
            && let Ok(mut kept) = self.gradient.lock()
        {
            *kept = Some(tensor(gradient, layout.shape())?);
        }
        Ok(output(nll, self.labels.len()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        let (gpu, x) = cuda::operand(s, l, "cross_entropy")?;
        let (rows, weight) = (rows_on(&self.head, &self.labels)?, self.weight.on(gpu)?);
        // SAFETY: `cross_entropy` has compared the shapes, and the labels with V.
        let (nll, gradient) = unsafe { cuda::cross_entropy(gpu, x, weight, rows, self.wants_gradient)? };
        if let (Some(gradient), Ok(mut kept)) = (gradient, self.gradient.lock()) {
            *kept = Some(gpu.tensor(gradient, l.shape()));
        }
        Ok(gpu.output(nll, self.labels.len()))
    }

    fn bwd(&self, x: &Tensor, _nll: &Tensor, d_nll: &Tensor) -> Result<Option<Tensor>> {
        let kept = self.gradient.lock().ok().and_then(|mut kept| kept.take());
        let Some(gradient) = kept else { bail!("cross_entropy: backward needs one forward pass before it") };
        let d = x.dims()[1];
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(x)? {
            let (gradient, factors) = (cuda::Read::of(&gradient)?, cuda::Read::of(d_nll)?);
            // SAFETY: there is a factor for each row.
            let dx = unsafe { cuda::scale_rows(gpu, (gradient.pointer, factors.pointer), (self.labels.len(), d))? };
            return Ok(Some(gpu.tensor(dx, x.shape())));
        }
        let mut gradient = with_values(&gradient, <[f32]>::to_vec)?;
        with_values(d_nll, |d_nll| {
            for (row, scale) in gradient.chunks_mut(d).zip(d_nll) {
                row.iter_mut().for_each(|g| *g *= scale);
            }
        })?;
        Ok(Some(tensor(gradient, x.shape())?))
    }
}

struct DenseHead {
    head: Head,
    labels: Vec<u32>,
}

/// Vocabulary rows whose logits exist at a time.
const VOCABULARY_BLOCK: usize = 1024;

impl DenseHead {
    fn softmax(&self, x: &[f32], w: &[f32], d: usize) -> Softmax {
        let mut softmax = Softmax::new(self.labels.len());
        self.for_logits(x, w, d, |first, logits, n, _| softmax.take(logits, n, first, &self.labels, &mut []));
        softmax
    }

    fn for_logits(&self, x: &[f32], w: &[f32], d: usize, mut f: impl FnMut(usize, &mut [f32], usize, &[f32])) {
        let m = self.labels.len();
        let mut scratch = Vec::new();
        for (b, block) in w.chunks(VOCABULARY_BLOCK * d).enumerate() {
            let n = block.len() / d;
            scratch.resize(m * n, 0f32);
            gemm(&mut scratch, n, (m, n, d), rows_of(x, d), transposed(block, d), false);
            self.head.cap(&mut scratch);
            f(b * VOCABULARY_BLOCK, &mut scratch, n, block);
        }
    }
}

impl CustomOp2 for DenseHead {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(s1, l1, "cross_entropy")?, slice(s2, l2, "cross_entropy")?);
        Ok(output(self.softmax(x, w, l1.dims()[1]).nll(), self.labels.len()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (gpu, x) = cuda::operand(s1, l1, "cross_entropy")?;
        let w = cuda::operand(s2, l2, "cross_entropy")?.1;
        // SAFETY: `cross_entropy` has compared the shapes, and the labels with V.
        let nll = unsafe { cuda::dense_cross_entropy(gpu, (x, w), rows_on(&self.head, &self.labels)?)? };
        Ok(gpu.output(nll, self.labels.len()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _nll: &Tensor, d_nll: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(x)? {
            let (x_at, w_at, d_nll) = (cuda::Read::of(x)?, cuda::Read::of(w)?, cuda::Read::of(d_nll)?);
            let pointers = (x_at.pointer, w_at.pointer, d_nll.pointer);
            let (rows, wanted) = (rows_on(&self.head, &self.labels)?, (x.track_op(), w.track_op()));
            // SAFETY: as in the forward pass; there is a gradient for each loss.
            let (dx, dw) = unsafe { cuda::dense_cross_entropy_backward(gpu, pointers, rows, wanted)? };
            return Ok((dx.map(|dx| gpu.tensor(dx, x.shape())), dw.map(|dw| gpu.tensor(dw, w.shape()))));
        }
        let (m, d) = x.dims2()?;
        let (x_values, w_values) = (with_values(x, <[f32]>::to_vec)?, with_values(w, <[f32]>::to_vec)?);
        let d_nll = with_values(d_nll, <[f32]>::to_vec)?;
        let softmax = self.softmax(&x_values, &w_values, d);
        let mut dx = vec![0f32; m * d];
        let mut dw = vec![0f32; w_values.len()];
        self.for_logits(&x_values, &w_values, d, |first, logits, n, block| {
            for (i, logits) in logits.chunks_mut(n).enumerate() {
                let label = self.labels[i] as usize;
                for (j, l) in logits.iter_mut().enumerate() {
                    let p =
                        (*l - softmax.max[i]).exp() / softmax.sum[i] as f32 - f32::from(u8::from(first + j == label));
                    *l = d_nll[i] * p * self.head.slope(*l);
                }
            }
            if x.track_op() {
                gemm(&mut dx, d, (m, d, n), rows_of(logits, n), rows_of(block, d), true);
            }
            if !w.track_op() {
                return;
            }
            let rows = View { values: logits, row_stride: 1, col_stride: n };
            gemm(&mut dw[first * d..], d, (n, d, m), rows, rows_of(&x_values, d), false);
        });
        Ok((wanted(x, || dx)?, wanted(w, || dw)?))
    }
}
