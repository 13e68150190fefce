//! AdamW (arXiv 1711.05101) on one variable, in one pass over its numbers.

use crate::cpu::{tensor, with_values};
use candle_core::{Result, Tensor, Var, bail};
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
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

impl Moments {
    /// Zero moments for `count` numbers.
    pub fn zeros(count: usize) -> Self {
        Self { first: vec![0.0; count], second: vec![0.0; count] }
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
        if grad.elem_count() != count || moments.first.len() != count || moments.second.len() != count {
            bail!("adamw: variable {:?}, gradient {:?}, {} moments", var.shape(), grad.shape(), moments.first.len());
        }
        if step == 0 {
            bail!("adamw: steps count from 1");
        }
        let power = step.min(i32::MAX as u64) as i32;
        let correction1 = (1.0 - f64::from(self.beta1).powi(power)) as f32;
        let correction2 = (1.0 - f64::from(self.beta2).powi(power)).sqrt() as f32;
        let (step_size, decay) = (learning_rate / correction1, 1.0 - learning_rate * self.weight_decay);
        let mut values = with_values(var, <[f32]>::to_vec)?;
        with_values(grad, |grad| {
            let state = moments.first.par_iter_mut().zip(&mut moments.second);
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
