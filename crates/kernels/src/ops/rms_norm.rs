//! Root-mean-square layer norm (arXiv 1910.07467), in f32.

use crate::bf16::Rounded;
use crate::cpu::{dot, filled, output, slice, tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::mem::MaybeUninit;

pub(super) struct RmsNorm {
    pub(super) eps: f32,
    pub(super) offset: f32,
}

/// `y = x / sqrt(mean(x^2) + eps) * (w + offset)` over the last axis.
///
/// # Shapes
/// `x: [.., D]`, `w: [D]` -> `[.., D]`.
///
/// # Errors
/// When the last axis of `x` is not the length of `w`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32, offset: f32) -> Result<Tensor> {
    if x.dims().last() != Some(&w.elem_count()) {
        bail!("rms_norm: expected rows of {}, found {:?}", w.elem_count(), x.shape());
    }
    x.contiguous()?.apply_op2(&w.contiguous()?, RmsNorm { eps, offset })
}

impl RmsNorm {
    fn inverse_rms(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }

    /// The norm of one row.
    #[inline]
    pub(super) fn row<'a>(&self, x: &'a [f32], w: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        let (scale, offset) = (self.inverse_rms(x), self.offset);
        x.iter().zip(w).map(move |(x, w)| x * scale * (w + offset))
    }
}

impl RmsNorm {
    /// The gradient of one row by `x`: with `g = dy * (w + offset)` and `r = 1 / rms`, `r * g - x * r^3 * mean(g * x)`.
    #[inline]
    fn row_gradient(&self, (x, w): (&[f32], &[f32]), dy: &[f32], dx: &mut [f32]) {
        let r = self.inverse_rms(x);
        for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(w) {
            *dx = dy * (w + self.offset);
        }
        let back = r * r * r * dot(dx, x) / x.len() as f32;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = *dx * r - x * back;
        }
    }

    /// `d` plus the gradient by `x`, on the CPU.
    pub(super) fn gradient_onto(&self, (x, w): (&[f32], &[f32]), dy: &[f32], d: &[f32]) -> Vec<f32> {
        let width = w.len();
        let fill = |sums: &mut [MaybeUninit<f32>]| {
            let inputs = x.par_chunks(width).zip(dy.par_chunks(width)).zip(d.par_chunks(width));
            sums.par_chunks_mut(width).zip(inputs).with_min_len(32).for_each_init(
                || vec![0f32; width],
                |dx, (sums, ((x, dy), d))| {
                    self.row_gradient((x, w), dy, dx);
                    for ((sum, d), dx) in sums.iter_mut().zip(d).zip(dx) {
                        sum.write(d + *dx);
                    }
                },
            );
        };
        // SAFETY: all operands have whole rows of the length of `w`, and every number of each is written.
        unsafe { filled(x.len(), fill) }
    }

    /// As [`Self::gradient_onto`], on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn gradient_onto_on(
        &self,
        gpu: &cuda::Gpu,
        (x, w): (&Tensor, &Tensor),
        dy: &Tensor,
        d: &Tensor,
    ) -> Result<Tensor> {
        let [x_at, w_at, dy_at, d_at] = [x, w, dy, d].map(cuda::Read::of);
        let (x_at, w_at, dy_at, d_at) = (x_at?, w_at?, dy_at?, d_at?);
        let pointers = (x_at.pointer, w_at.pointer, dy_at.pointer, d_at.pointer);
        let size = (x.elem_count() / w.elem_count(), w.elem_count());
        let constants = (self.eps, self.offset);
        // SAFETY: gradients have the shape of what they are of.
        match unsafe { cuda::rms_norm_backward(gpu, pointers, size, constants, (true, false))? } {
            (Some(dx), _) => Ok(gpu.tensor(dx, x.shape())),
            (None, _) => bail!("rms_norm: no gradient where one is wanted"),
        }
    }

    /// The norm of each row, rounded.
    pub(super) fn rounded(&self, x: &[f32], w: &[f32]) -> Rounded {
        let width = w.len();
        Rounded::written(x.len() / width, width, |row, y| {
            y.iter_mut().zip(self.row(&x[row * width..(row + 1) * width], w)).for_each(|(y, x)| *y = x);
        })
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(s1, l1, "rms_norm")?, slice(s2, l2, "rms_norm")?);
        let fill = |y: &mut [MaybeUninit<f32>]| {
            y.par_chunks_mut(w.len()).zip(x.par_chunks(w.len())).with_min_len(32).for_each(|(y, x)| {
                y.iter_mut().zip(self.row(x, w)).for_each(|(y, x)| {
                    y.write(x);
                });
            });
        };
        // SAFETY: `x` has whole rows of the length of `w`, and every number of each is written.
        let y = unsafe { filled(x.len(), fill) };
        Ok(output(y, l1.shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &candle_core::CudaStorage,
        l1: &Layout,
        s2: &candle_core::CudaStorage,
        l2: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let ((gpu, x), (_, w)) = (cuda::operand(s1, l1, "rms_norm")?, cuda::operand(s2, l2, "rms_norm")?);
        let width = l2.shape().elem_count();
        let rows = l1.shape().elem_count() / width;
        // SAFETY: `rms_norm` has compared the last axis with the weight.
        let y = unsafe { cuda::rms_norm(gpu, (x, w), (rows, width), (self.eps, self.offset))? };
        Ok(gpu.output(y, l1.shape()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients((x, w), dy, (x.track_op(), w.track_op()))
    }
}

impl RmsNorm {
    /// Gradients by `x` and by `w`, those that are wanted.
    pub(super) fn gradients(
        &self,
        (x, w): (&Tensor, &Tensor),
        dy: &Tensor,
        (wants_dx, wants_dw): (bool, bool),
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(x)? {
            let [x_at, w_at, dy_at] = [x, w, dy].map(cuda::Read::of);
            let (x_at, w_at, dy_at) = (x_at?, w_at?, dy_at?);
            let pointers = (x_at.pointer, w_at.pointer, dy_at.pointer, 0);
            let size = (x.elem_count() / w.elem_count(), w.elem_count());
            let wanted = (wants_dx, wants_dw);
            // SAFETY: a gradient has the shape of what it is of.
            let (dx, dw) = unsafe { cuda::rms_norm_backward(gpu, pointers, size, (self.eps, self.offset), wanted)? };
            return Ok((dx.map(|dx| gpu.tensor(dx, x.shape())), dw.map(|dw| gpu.tensor(dw, w.shape()))));
        }
        let (x_values, w_values) = (with_values(x, <[f32]>::to_vec)?, with_values(w, <[f32]>::to_vec)?);
        let dy = with_values(dy, <[f32]>::to_vec)?;
        let width = w_values.len();
        let dx = if wants_dx {
            let mut dx = vec![0f32; x_values.len()];
            dx.par_chunks_mut(width)
                .zip(x_values.par_chunks(width))
                .zip(dy.par_chunks(width))
                .with_min_len(32)
                .for_each(|((dx, x), dy)| self.row_gradient((x, &w_values), dy, dx));
            Some(tensor(dx, x.shape())?)
        } else {
            None
        };
        let dw = if wants_dw {
            let mut dw = vec![0f32; width];
            for (x, dy) in x_values.chunks(width).zip(dy.chunks(width)) {
                let r = self.inverse_rms(x);
                for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
                    *dw += dy * x * r;
                }
            }
            Some(tensor(dw, w.shape())?)
        } else {
            None
        };
        Ok((dx, dw))
    }
}
