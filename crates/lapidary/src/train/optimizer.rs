//! AdamW over groups of variables, with clipping of the global gradient norm.

use crate::Error;
use kernels::{AdamW, Moments, Tensor, Update, Var, adamw, sums_of_squares};

/// What kind of parameter a variable is: decides its learning rate and decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Low-rank update or, in a full fine-tune, a weight.
    Weights,
    /// Rows of the special tokens.
    Special,
    /// The logarithm of the contrastive scale.
    Temperature,
}

/// A trained variable with its name and moments.
#[derive(Debug)]
pub struct Param {
    /// Name in checkpoints.
    pub name: String,
    /// Group.
    pub group: Group,
    /// The variable.
    pub var: Var,
    /// First and second moments.
    pub moments: Moments,
}

impl Param {
    /// A variable with zero moments.
    pub fn new(name: String, group: Group, var: Var) -> Self {
        let moments = Moments::zeros(var.elem_count());
        Self { name, group, var, moments }
    }
}

/// Euclidean norm over all gradients, f64.
///
/// # Errors
/// When a gradient cannot be read.
pub fn global_norm(gradients: &[Option<Tensor>]) -> Result<f64, Error> {
    let gradients: Vec<&Tensor> = gradients.iter().flatten().collect();
    Ok(sums_of_squares(&gradients)?.iter().sum::<f64>().sqrt())
}

/// One step of every variable that has a gradient; the gradient is scaled down to `max_grad_norm` first, as
/// `torch.nn.utils.clip_grad_norm_` does. `settings` gives hyper-parameters and learning rate of a group.
///
/// # Errors
/// When a gradient differs from its variable in size.
pub fn step<'a>(
    params: &'a mut [Param],
    gradients: &'a [Option<Tensor>],
    (number, norm, max_grad_norm): (u64, f64, f64),
    settings: impl Fn(Group) -> (AdamW, f64),
) -> Result<(), Error> {
    let scale = (max_grad_norm / (norm + 1e-6)).min(1.0) as f32;
    let update = |(param, gradient): (&'a mut Param, &'a Option<Tensor>)| {
        let (rule, learning_rate) = settings(param.group);
        let Param { var, moments, .. } = param;
        let gradient = gradient.as_ref()?;
        Some(Update { adamw: rule, learning_rate: learning_rate as f32, var, gradient, moments })
    };
    Ok(adamw(params.iter_mut().zip(gradients).filter_map(update).collect(), (number, scale))?)
}
