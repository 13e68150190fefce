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

impl AdamW {
    /// Step number `step` (from 1) as `torch.optim.AdamW` takes it; the gradient is multiplied by `grad_scale`
    /// first (1, or the factor of clipping).
    ///
    /// # Errors
    /// When the gradient or the moments differ from the variable in size, or `step` is 0.
    pub fn step(
        &self,
        var: &Var,
        grad: &Tensor,
        moments: &mut Moments,
        (step, learning_rate, grad_scale): (u64, f32, f32),
    ) -> Result<()> {
        let count = var.elem_count();
        let Moments { first, second } = moments;
        if grad.elem_count() != count || first.len() != count || second.len() != count {
            bail!("adamw: variable {:?}, gradient {:?}, {} moments", var.shape(), grad.shape(), first.len());
        }
        if step == 0 {
            bail!("adamw: steps count from 1");
        }
        let power = step.min(i32::MAX as u64) as i32;
        let correction1 = (1.0 - f64::from(self.beta1).powi(power)) as f32;
        let correction2 = (1.0 - f64::from(self.beta2).powi(power)).sqrt() as f32;
        let (step_size, decay) = (learning_rate / correction1, 1.0 - learning_rate * self.weight_decay);
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(var)? {
            if !var.is_contiguous() {
                bail!("adamw: expected a contiguous variable, found {:?}", var.shape());
            }
            first.move_to(gpu)?;
            second.move_to(gpu)?;
            let (p, g) = (cuda::Read::of(var)?, cuda::Read::of(grad)?);
            let pointers = [p.pointer, g.pointer, first.pointer()?, second.pointer()?];
            let numbers = [self.beta1, self.beta2, self.eps, decay, step_size, correction2, grad_scale];
            // SAFETY: all four have so many numbers. A variable is contiguous: what is written to is its own.
            return unsafe { cuda::adamw(gpu, pointers, count, numbers) };
        }
        let (first, second) = (first.host_mut()?, second.host_mut()?);
        let mut values = with_values(var, <[f32]>::to_vec)?;
        with_values(grad, |grad| {
            let state = first.par_iter_mut().zip(second);
            values.par_iter_mut().zip(grad).zip(state).with_min_len(1 << 14).for_each(|((p, g), (m, v))| {
                let g = g * grad_scale;
                *m = self.beta1 * *m + (1.0 - self.beta1) * g;
                *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
                *p = *p * decay - step_size * *m / (v.sqrt() / correction2 + self.eps);
            });
        })?;
        var.set(&tensor(values, var.shape())?)
    }
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
