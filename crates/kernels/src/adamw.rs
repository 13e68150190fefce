//! AdamW (arXiv 1711.05101) on one variable, in one pass over its numbers.

use crate::buffer::Buffer;
use crate::cpu::{tensor, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{Device, Result, Tensor, Var, bail};
use rayon::prelude::*;

/// Hyper-parameters of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled: each step first multiplies by `1 - learning_rate * weight_decay`.
    pub weight_decay: f32,
}

/// First and second moments of one variable.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Running mean of the gradient.
    first: Buffer,
    /// Running mean of its square.
    second: Buffer,
}

impl Moments {
    /// Zero moments for `count` numbers.
    pub fn zeros(count: usize) -> Self {
        Self::new(vec![0.0; count], vec![0.0; count])
    }

    /// These running means of the gradient and of its square.
    pub fn new(first: Vec<f32>, second: Vec<f32>) -> Self {
        Self { first: Buffer::Host(first), second: Buffer::Host(second) }
    }

    /// Copies of the running means of the gradient and of its square.
    ///
    /// # Errors
    /// When they cannot be read from the device that they lie on.
    pub fn to_vecs(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        Ok((self.first.to_vec()?, self.second.to_vec()?))
    }
}

/// A variable with what a step of AdamW takes it by.
#[derive(Debug)]
pub struct Update<'a> {
    /// Hyper-parameters.
    pub adamw: AdamW,
    /// Learning rate.
    pub learning_rate: f32,
    /// Changed.
    pub var: &'a Var,
    /// As many numbers as the variable.
    pub gradient: &'a Tensor,
    /// Changed.
    pub moments: &'a mut Moments,
}

impl Update<'_> {
    fn check(&self) -> Result<()> {
        let (count, Moments { first, second }) = (self.var.elem_count(), &*self.moments);
        if self.gradient.elem_count() != count || first.len() != count || second.len() != count {
            bail!(
                "adamw: variable {:?}, gradient {:?}, {} and {} moments",
                self.var.shape(),
                self.gradient.shape(),
                first.len(),
                second.len()
            );
        }
        Ok(())
    }

    /// `1 - learning_rate * weight_decay`, the learning rate over the correction of the first moment, and the correction
    /// of the second.
    fn factors(&self, step: u64) -> [f32; 3] {
        let power = step.min(i32::MAX as u64) as i32;
        let correction1 = (1.0 - f64::from(self.adamw.beta1).powi(power)) as f32;
        let correction2 = (1.0 - f64::from(self.adamw.beta2).powi(power)).sqrt() as f32;
        [1.0 - self.learning_rate * self.adamw.weight_decay, self.learning_rate / correction1, correction2]
    }

    fn on_cpu(self, step: u64, grad_scale: f32) -> Result<()> {
        let [decay, step_size, correction2] = self.factors(step);
        let AdamW { beta1, beta2, eps, .. } = self.adamw;
        let Moments { first, second } = self.moments;
        let (first, second) = (first.host_mut()?, second.host_mut()?);
        let mut values = with_values(self.var, <[f32]>::to_vec)?;
        with_values(self.gradient, |grad| {
            let state = first.par_iter_mut().zip(second);
            values.par_iter_mut().zip(grad).zip(state).with_min_len(1 << 14).for_each(|((p, g), (m, v))| {
                let g = g * grad_scale;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *p = *p * decay - step_size * *m / (v.sqrt() / correction2 + eps);
            });
        })?;
        self.var.set(&tensor(values, self.var.shape())?)
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&mut self, gpu: &'static cuda::Gpu, step: u64, grad_scale: f32) -> Result<cuda::AdamWRun> {
        if !self.var.is_contiguous() {
            bail!("adamw: expected a contiguous variable, found {:?}", self.var.shape());
        }
        let ([decay, step_size, correction], Moments { first, second }) = (self.factors(step), &mut *self.moments);
        first.move_to(gpu)?;
        second.move_to(gpu)?;
        Ok(cuda::AdamWRun {
            parameters: cuda::Read::of(self.var)?.pointer,
            gradient: cuda::Read::of(self.gradient)?.pointer,
            first: first.pointer()?,
            second: second.pointer()?,
            count: self.var.elem_count(),
            beta1: self.adamw.beta1,
            beta2: self.adamw.beta2,
            eps: self.adamw.eps,
            decay,
            step_size,
            correction,
            scale: grad_scale,
            _padding: 0.0,
        })
    }
}

/// Step number `step` (from 1) as `torch.optim.AdamW` takes it, of all variables; gradients are multiplied by `grad_scale`
/// first (1, or the factor of clipping). Those on a GPU are done at once.
///
/// # Errors
/// When a gradient or the moments differ from their variable in size, or `step` is 0; nothing has changed then.
pub fn adamw(updates: Vec<Update<'_>>, (step, grad_scale): (u64, f32)) -> Result<()> {
    if step == 0 {
        bail!("adamw: steps count from 1");
    }
    updates.iter().try_for_each(Update::check)?;
    #[cfg(feature = "cuda")]
    let updates = {
        let (mut on_gpu, on_cpu): (Vec<_>, Vec<_>) =
            updates.into_iter().partition(|update| update.var.device().is_cuda());
        if let Some(first) = on_gpu.first()
            && let Some(gpu) = cuda::Gpu::with(first.var)?
        {
            let gradients =
                on_gpu.iter().map(|update| update.gradient.contiguous()).collect::<Result<Vec<Tensor>>>()?;
            let runs = (on_gpu.iter_mut().zip(&gradients))
                .map(|(update, gradient)| {
                    let moments = &mut *update.moments;
                    Update { gradient, moments, ..*update }.on_gpu(gpu, step, grad_scale)
                })
                .collect::<Result<Vec<_>>>()?;
            // SAFETY: `check` has compared the counts. A variable is contiguous: what is written to is its own.
            unsafe { cuda::adamw(gpu, &runs)? };
        }
        on_cpu
    };
    updates.into_iter().try_for_each(|update| update.on_cpu(step, grad_scale))
}

/// The sum of the squares of each tensor's numbers, in f64.
///
/// # Errors
/// When a tensor cannot be read, or is not of f32 numbers.
pub fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = tensors.iter().find_map(|tensor| cuda::Gpu::with(tensor).transpose()).transpose()?
        && tensors.iter().all(|tensor| tensor.device().is_cuda())
    {
        let reads = tensors.iter().map(|tensor| cuda::Read::of(tensor)).collect::<Result<Vec<_>>>()?;
        let runs: Vec<_> =
            reads.iter().zip(tensors).map(|(read, tensor)| (read.pointer, tensor.elem_count())).collect();
        // SAFETY: each pointer leads to the numbers of its tensor.
        return unsafe { cuda::sums_of_squares(gpu, &runs) };
    }
    let of_host = |values: &[f32]| values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    tensors.iter().map(|tensor| with_values(&tensor.to_device(&Device::Cpu)?, of_host)).collect()
}
