//! One update of the trained variables: a batch of examples to losses, gradients, guards, and a step of the optimiser.

use super::checkpoint::State;
use super::optimizer::{self, Group, Param, global_norm};
use super::recipe::{Recipe, Trained};
use super::rows::{Position, RowStream};
use super::schedule::learning_rate_factor;
use super::step::{LossWeights, StepModel, StepOptions, StepResult, step};
use super::teacher::Teachers;
use crate::Error;
use crate::data::RowRef;
use crate::model::{Adapter, BaseModel, Decoder};
use kernels::{AdamW, Device, Tensor, Var};
use layout::{Example, Loss, Method, Plan, Rng};
use rand::SeedableRng as _;
use serde::Serialize;
use std::ops::Range;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

/// Mean pairwise cosine of queries at and above which vectors have collapsed.
const COLLAPSED: f64 = 0.9995;
/// Steps in a row that the collapse guard waits.
const COLLAPSED_STEPS: u64 = 20;
/// Steps after which a loss that never moved is an error.
const CONSTANT_STEPS: u64 = 20;
/// The logit scale is at most 100, as in CLIP.
const MAX_LOG_SCALE: f32 = 4.605_170_2;

/// What one step measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Step, from 1.
    pub step: u64,
    /// Steps of the whole run.
    #[serde(skip)]
    pub steps: u64,
    /// Weighted sum of the losses.
    pub loss: f64,
    /// Mean next-token loss, nats; null without labels or weight.
    pub next_token: f64,
    /// Contrastive loss, nats; null without pairs or weight.
    pub contrastive: f64,
    /// Mean of one minus the cosine of query and positive; null without weight.
    pub alignment: f64,
    /// One minus the correlation with the teacher's cosines; null without a teacher.
    pub similarity: f64,
    /// Weight of the contrastive loss.
    pub alpha: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the adapter or weights.
    pub learning_rate: f64,
    /// Contrastive temperature.
    pub temperature: f64,
    /// Mean cosine of different queries; null where no vectors are made.
    pub mean_pairwise_cosine: f64,
    /// Positions run per second of this step, in which rows are also waited for.
    pub tokens_per_sec: f64,
    /// Rows learned from so far.
    pub rows: u64,
    /// Seconds of training so far, in which rows are also waited for.
    pub train_secs: f64,
}

/// What the method makes of the examples of the update behind `at_step` others.
///
/// # Errors
/// When the method cannot learn from one of them.
pub fn plans<'a>(
    recipe: &Recipe,
    method: &(dyn Method + Send + Sync),
    examples: impl Iterator<Item = &'a Example>,
    at_step: u64,
) -> Result<Vec<Plan>, Error> {
    let first = 1 + at_step * recipe.budget.batch_rows as u64;
    let plan = |(row, example)| {
        // Every row of the run has its own stream of random numbers: a resume needs no generator state.
        let mut rng = Rng::seed_from_u64(recipe.seed);
        rng.set_stream(row);
        Ok(method.train_plan(example, &mut rng)?)
    };
    (first..).zip(examples).map(plan).collect()
}

/// Examples of one update, where they came from, and what the method makes of them.
pub(super) struct Batch {
    examples: Vec<(Example, RowRef)>,
    plans: Vec<Plan>,
    /// Where the stream stands behind them.
    pub(super) position: Position,
}

impl Batch {
    /// Reads the examples of the update behind `at_step` others.
    ///
    /// # Errors
    /// When a row cannot be read, or the method cannot learn from it.
    fn read(
        rows: &mut RowStream<'_>,
        recipe: &Recipe,
        method: &(dyn Method + Send + Sync),
        at_step: u64,
    ) -> Result<Self, Error> {
        let count = recipe.budget.batch_rows;
        let examples = (0..count).map(|_| rows.next_example()).collect::<Result<Vec<_>, _>>()?;
        let plans = plans(recipe, method, examples.iter().map(|(example, _)| example), at_step)?;
        Ok(Self { examples, plans, position: rows.position() })
    }

    /// Reads a batch for each of these steps and hands it on, until one cannot be read or nobody takes them any more.
    pub(super) fn read_all(
        rows: &mut RowStream<'_>,
        recipe: &Recipe,
        method: &(dyn Method + Send + Sync),
        steps: Range<u64>,
        to: &SyncSender<Result<Self, Error>>,
    ) {
        for step in steps {
            let batch = Self::read(rows, recipe, method, step);
            let is_read = batch.is_ok();
            if to.send(batch).is_err() || !is_read {
                return;
            }
        }
    }
}

/// What an update reads and changes.
pub(super) struct Update<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) base: &'a BaseModel,
    pub(super) prefix: &'a Decoder,
    pub(super) method: &'a (dyn Method + Send + Sync),
    pub(super) adapter: &'a Adapter,
    pub(super) teachers: Option<&'a Teachers>,
    pub(super) params: &'a mut [Param],
    pub(super) log_scale: &'a Var,
}

impl Update<'_> {
    /// Learns from one batch, for which it has been waited since `clock`.
    ///
    /// # Errors
    /// When a row does not fit the model, or a guard finds that the run has gone wrong.
    pub(super) fn run(mut self, batch: &Batch, state: &mut State, clock: Instant) -> Result<StepMetrics, Error> {
        let recipe = self.recipe;
        let at = (state.step, recipe.steps());
        let alpha = recipe.loss.alpha.at(at);
        let examples = || batch.examples.iter().map(|(example, _)| example);
        let cosines = self.teachers.map(|teachers| teachers.cosines(self.base, examples())).transpose()?;
        let weight = |loss: Loss| -> f64 {
            let terms = self.method.objective().terms.into_iter().filter(|term| term.loss == loss);
            terms.map(|term| f64::from(term.weight.at(alpha as f32))).sum()
        };
        let weights = LossWeights {
            next_token: weight(Loss::NextToken),
            contrastive: weight(Loss::Contrastive),
            alignment: weight(Loss::Alignment),
            scale: self.log_scale.to_vec1::<f32>()?[0].exp(),
            similarity: cosines.as_ref().map(|cosines| (recipe.loss.teacher.weight, cosines)),
        };
        let result = self.gradients(&batch.plans, &weights, state.step)?;
        let norm = global_norm(&result.gradients)?;
        let loss = weighted(weights.next_token, result.next_token)
            + weighted(weights.contrastive, result.contrastive)
            + weighted(weights.alignment, result.alignment)
            + weighted(recipe.loss.teacher.weight, result.similarity);
        guard(&result, (loss, norm), state, &batch.examples)?;
        let learning_rate = self.optimise(&result.gradients, norm, at)?;
        Ok(StepMetrics {
            step: state.step + 1,
            steps: at.1,
            loss,
            next_token: result.next_token,
            contrastive: result.contrastive,
            alignment: result.alignment,
            similarity: result.similarity,
            alpha,
            grad_norm: norm,
            learning_rate,
            temperature: 1.0 / f64::from(weights.scale),
            mean_pairwise_cosine: result.mean_pairwise_cosine,
            tokens_per_sec: result.num_tokens as f64 / clock.elapsed().as_secs_f64(),
            rows: (state.step + 1) * recipe.budget.batch_rows as u64,
            train_secs: state.train_secs + clock.elapsed().as_secs_f64(),
        })
    }

    fn gradients(&self, plans: &[Plan], weights: &LossWeights<'_>, at_step: u64) -> Result<StepResult, Error> {
        let recipe = self.recipe;
        let options = StepOptions {
            micro_batch_tokens: recipe.budget.micro_batch_tokens,
            split_frozen: recipe.trained == Trained::Lora,
            hidden_dropout: recipe.loss.hidden_dropout as f32,
            dropout_seed: recipe.seed.wrapping_add(at_step << 20),
        };
        let vars: Vec<Var> = self.params.iter().map(|p| p.var.clone()).collect();
        let model = StepModel { decoder: &self.base.decoder, prefix: self.prefix, adapter: self.adapter, vars: &vars };
        let mut result = step(&model, plans, weights, &options)?;
        if recipe.loss.learnable_temperature {
            let last = result.gradients.len() - 1;
            result.gradients[last] = Some(Tensor::from_vec(vec![result.log_scale_gradient as f32], 1, &Device::Cpu)?);
        }
        Ok(result)
    }

    /// A step of the optimiser; returns the learning rate of the adapter or weights.
    fn optimise(&mut self, gradients: &[Option<Tensor>], norm: f64, at: (u64, u64)) -> Result<f64, Error> {
        let o = &self.recipe.optimizer;
        let factor = learning_rate_factor(o.decay, at, o.warmup_ratio, o.floor_ratio);
        let settings = |group: Group| {
            let decay = if group == Group::Weights { o.weight_decay as f32 } else { 0.0 };
            let adamw = AdamW { beta1: o.beta1 as f32, beta2: o.beta2 as f32, eps: o.eps as f32, weight_decay: decay };
            let peak = match group {
                Group::Weights => o.learning_rate,
                Group::Special => o.special_learning_rate,
                Group::Temperature => o.temperature_learning_rate,
            };
            (adamw, peak * factor)
        };
        optimizer::step(self.params, gradients, (at.0 + 1, norm, o.max_grad_norm), settings)?;
        if self.recipe.loss.learnable_temperature {
            let clamped = self.log_scale.to_vec1::<f32>()?[0].clamp(0.0, MAX_LOG_SCALE);
            self.log_scale.set(&Tensor::from_vec(vec![clamped], 1, &Device::Cpu)?)?;
        }
        Ok(o.learning_rate * factor)
    }
}

fn weighted(weight: f64, loss: f64) -> f64 {
    if weight == 0.0 || loss.is_nan() { 0.0 } else { weight * loss }
}

/// Stops a run that has gone wrong, before its numbers reach the weights.
fn guard(
    result: &StepResult,
    (loss, norm): (f64, f64),
    state: &mut State,
    batch: &[(Example, RowRef)],
) -> Result<(), Error> {
    let stop = |reason: String| Err(Error::Training { step: state.step + 1, reason });
    // A loss of weight 0 is not in the sum; NaN says that there is none.
    let infinite = result.next_token.is_infinite() || result.contrastive.is_infinite();
    if !loss.is_finite() || !norm.is_finite() || infinite {
        let rows: Vec<String> = batch.iter().take(8).map(|(_, row)| row.to_string()).collect();
        let more = batch.len().saturating_sub(rows.len());
        return stop(format!("loss {loss}, gradient norm {norm}; rows {} and {more} more", rows.join(", ")));
    }
    state.collapsed_steps = if result.mean_pairwise_cosine > COLLAPSED { state.collapsed_steps + 1 } else { 0 };
    if state.collapsed_steps >= COLLAPSED_STEPS {
        return stop(format!(
            "the vectors have collapsed: mean pairwise cosine {:.5} for {COLLAPSED_STEPS} steps",
            result.mean_pairwise_cosine
        ));
    }
    // Each loss by itself: their weighted sum moves with the schedule of α.
    let losses = [result.next_token, result.contrastive, result.similarity, result.alignment];
    for (first, loss) in state.first_losses.iter_mut().zip(losses).filter(|(_, loss)| !loss.is_nan()) {
        let first = *first.get_or_insert(loss);
        state.loss_moved |= (loss - first).abs() > 1e-7 * (1.0 + first);
    }
    if state.step + 1 >= CONSTANT_STEPS && !state.loss_moved {
        return stop(format!("the loss is {loss} since the first step: nothing is learned"));
    }
    Ok(())
}
