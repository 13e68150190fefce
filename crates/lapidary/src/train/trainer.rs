//! The training loop: batches, steps, validation, checkpoints, guards.

use super::checkpoint::{self, State};
use super::optimizer::{self, Group, Param, global_norm};
use super::recipe::{Recipe, Trained, WeightFormat};
use super::rows::{RowStream, first_rows};
use super::schedule::learning_rate_factor;
use super::step::{LossWeights, StepModel, StepOptions, StepResult, step};
use crate::Error;
use crate::data::RowRef;
use crate::data::sts::StsPairs;
use crate::embed::{EmbedOptions, Embedder};
use crate::eval::standardise::Standardisation;
use crate::eval::sts::score_pairs;
use crate::model::{Adapter, BaseModel, GemConfig, GemDir, NamedVars};
use kernels::{AdamW, Device, Matrix, Tensor, Var};
use layout::{Example, Loss, Method, Plan, Rng, SpecialInit};
use rand::SeedableRng as _;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Rows over which the standardisation is fitted.
const STANDARDISATION_ROWS: usize = 1024;
/// Rows over which it is fitted for a validation.
const VALIDATION_ROWS: usize = 256;
/// Mean pairwise cosine of queries at and above which vectors have collapsed.
const COLLAPSED: f64 = 0.9995;
/// Steps in a row that the collapse guard waits.
const COLLAPSED_STEPS: u64 = 20;
/// Steps after which a loss that never moved is an error.
const CONSTANT_STEPS: u64 = 20;
/// The logit scale is at most 100, as in CLIP.
const MAX_LOG_SCALE: f32 = 4.605_170_2;

/// Where a run writes, and how often.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Directory of the run: checkpoints, best, model, metrics.
    pub out: PathBuf,
    /// Steps between checkpoints; 0: at the end alone.
    pub checkpoint_every_steps: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
    /// Stop after this many steps of the run, as an interrupt would; 0: never.
    pub stop_after_steps: u64,
}

/// What one step measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Step, from 1.
    pub step: u64,
    /// Steps of the whole run.
    #[serde(skip)]
    pub steps: u64,
    /// Weighted sum of the losses, nats.
    pub loss: f64,
    /// Mean next-token loss, nats; null without labels.
    pub next_token: f64,
    /// Contrastive loss, nats; null without pairs.
    pub contrastive: f64,
    /// Weight of the contrastive loss.
    pub alpha: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the adapter or weights.
    pub learning_rate: f64,
    /// Contrastive temperature.
    pub temperature: f64,
    /// Mean cosine of different queries.
    pub mean_pairwise_cosine: f64,
    /// Positions run per second of this step.
    pub tokens_per_sec: f64,
    /// Rows learned from so far.
    pub rows: u64,
    /// Seconds of training so far.
    pub train_secs: f64,
}

/// What a run tells its watcher.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step is done.
    Step(&'a StepMetrics),
    /// A validation is done: Spearman times 100, and whether it is the best so far.
    Validation {
        /// Step, from 1; 0 before training.
        step: u64,
        /// Spearman of cosine, times 100.
        spearman: f64,
        /// Better than all before.
        best: bool,
    },
    /// A checkpoint is on disk.
    Checkpoint(&'a Path),
    /// The run goes on from a checkpoint.
    Resumed {
        /// Steps that were already done.
        step: u64,
    },
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Every step is done; otherwise the run was interrupted after a checkpoint.
    pub finished: bool,
    /// The state at the end.
    pub state: State,
    /// The model directory, when finished.
    pub model: Option<PathBuf>,
}

/// A training run.
pub struct Trainer<'a> {
    recipe: Recipe,
    recipe_text: String,
    base: &'a mut BaseModel,
    method: Box<dyn Method + Send + Sync>,
    adapter: Adapter,
    weights: NamedVars,
    params: Vec<Param>,
    log_scale: Var,
    options: RunOptions,
}

/// The method of a recipe, built with the base model's tokenizer.
///
/// # Errors
/// When the name or a setting is unknown.
pub fn build_method(
    base: &BaseModel,
    name: &str,
    settings: serde_json::Value,
) -> Result<Box<dyn Method + Send + Sync>, Error> {
    // Templates are short and ours: encoding them cannot fail on any tokenizer that loads.
    let encode = |text: &str| base.tokenizer.encode(text).unwrap_or_default();
    Ok(layout::build(name, settings, &layout::MethodContext { encode: &encode, bos: base.bos() })?)
}

/// Starting rows of a method's special tokens.
///
/// # Errors
/// When a token is outside the vocabulary.
pub fn special_rows(base: &BaseModel, method: &dyn Method) -> Result<Vec<Vec<f32>>, Error> {
    method
        .special_tokens()
        .iter()
        .map(|token| match token.init {
            SpecialInit::Token(id) => base.decoder.token_embedding(id),
            SpecialInit::VocabularyMean => base.decoder.mean_token_embedding(),
        })
        .collect()
}

impl<'a> Trainer<'a> {
    /// Prepares a run.
    ///
    /// # Errors
    /// When the method is not trainable or a setting does not fit the model.
    pub fn new(recipe: Recipe, base: &'a mut BaseModel, options: RunOptions) -> Result<Self, Error> {
        let settings = serde_json::Value::Object(recipe.method.settings.clone());
        let method = build_method(base, &recipe.method.name, settings)?;
        if !method.trainable() {
            return Err(layout::MethodError::NotTrained { method: method.name() }.into());
        }
        let special = special_rows(base, method.as_ref())?;
        match recipe.weights {
            WeightFormat::Stored => {}
            WeightFormat::Bf16 => base.decoder.restore_frozen(Matrix::to_bf16)?,
            WeightFormat::F32 => base.decoder.restore_frozen(|m| Matrix::from_f32(m.to_f32(), m.rows(), m.cols()))?,
        }
        let mut rng = Rng::seed_from_u64(recipe.seed);
        let lora = (recipe.trained == Trained::Lora).then(|| recipe.lora.clone());
        let adapter = Adapter::new(&base.decoder, lora, &special, &mut rng)?;
        let weights = if recipe.trained == Trained::Full { base.decoder.make_trainable()? } else { Vec::new() };
        let log_scale = Var::from_vec(vec![-(recipe.loss.temperature as f32).ln()], 1, &Device::Cpu)?;
        let mut params: Vec<Param> = (adapter.lora_vars().into_iter().chain(weights.iter().cloned()))
            .map(|(name, var)| Param::new(name, Group::Weights, var))
            .collect();
        if let Some(special) = adapter.special_var() {
            params.push(Param::new("special_tokens".into(), Group::Special, special.clone()));
        }
        params.push(Param::new("log_scale".into(), Group::Temperature, log_scale.clone()));
        let recipe_text = recipe.to_toml()?;
        Ok(Self { recipe, recipe_text, base, method, adapter, weights, params, log_scale, options })
    }

    /// Number of trained numbers.
    pub fn num_trained(&self) -> usize {
        let all: usize = self.params.iter().map(|p| p.var.elem_count()).sum();
        if self.recipe.loss.learnable_temperature { all } else { all - 1 }
    }

    /// The trained variables, for tests and tools: name, group, value, moments.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    fn checkpoints(&self) -> PathBuf {
        self.options.out.join("checkpoints")
    }

    /// Runs to the end, or until `stop` is set: then a checkpoint is written first. Goes on from the newest
    /// checkpoint of the output directory, if there is one.
    ///
    /// # Errors
    /// When data or disk fail, or a guard stops the run; the last good checkpoint is kept.
    pub fn run(
        &mut self,
        stop: &AtomicBool,
        watch: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<Outcome, Error> {
        let mut state = match checkpoint::load(&self.checkpoints(), &self.recipe_text, &mut self.params)? {
            Some(state) => {
                watch(Event::Resumed { step: state.step })?;
                state
            }
            None => State { recipe: self.recipe_text.clone(), ..State::default() },
        };
        let pairs = self.validation_pairs()?;
        let sample = first_rows(&self.recipe.data, &self.base.tokenizer, &self.recipe.budget, STANDARDISATION_ROWS)?;
        let steps = self.recipe.steps();
        let last_step = match self.options.stop_after_steps {
            0 => u64::MAX,
            count => state.step.saturating_add(count),
        };
        while state.step < steps {
            if state.step == last_step || stop.load(Ordering::Relaxed) {
                let path = checkpoint::save(&self.checkpoints(), &state, &self.params, self.options.keep_checkpoints)?;
                watch(Event::Checkpoint(&path))?;
                return Ok(Outcome { finished: false, state, model: None });
            }
            // The stream borrows the tokenizer for as long as no validation or checkpoint needs the model.
            let until = self.next_stop(state.step, steps).min(last_step);
            self.steps_until(until, &mut state, stop, watch)?;
            let step = state.step;
            let due = |every: u64| step == steps || every > 0 && step % every == 0;
            if let Some(pairs) = &pairs
                && due(self.recipe.validation.every_steps)
            {
                self.validate(pairs, &sample, &mut state, watch)?;
            }
            if due(self.options.checkpoint_every_steps) {
                let path = checkpoint::save(&self.checkpoints(), &state, &self.params, self.options.keep_checkpoints)?;
                watch(Event::Checkpoint(&path))?;
            }
        }
        let model = self.options.out.join("model");
        let best = self.options.out.join("best");
        match state.best {
            Some((_, at)) if at != state.step && GemConfig::is_gem(&best) => copy_dir(&best, &model)?,
            _ => self.save_model(&model, &sample)?,
        }
        Ok(Outcome { finished: true, state, model: Some(model) })
    }

    /// The next step at which something else than training is due.
    fn next_stop(&self, step: u64, steps: u64) -> u64 {
        let next = |every: u64| step.checked_div(every).map_or(u64::MAX, |done| (done + 1) * every);
        next(self.options.checkpoint_every_steps).min(next(self.recipe.validation.every_steps)).min(steps)
    }

    fn steps_until(
        &mut self,
        until: u64,
        state: &mut State,
        stop: &AtomicBool,
        watch: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let seed = self.recipe.seed;
        let mut stream =
            RowStream::open(&self.recipe.data, &self.base.tokenizer, &self.recipe.budget, seed, state.position)?;
        let mut prepared = Vec::new();
        // Reading ahead for the whole stretch would hold it in memory: one batch at a time.
        while state.step < until && !stop.load(Ordering::Relaxed) {
            prepared.clear();
            for _ in 0..self.recipe.budget.batch_rows {
                prepared.push(stream.next_example()?);
            }
            let clock = Instant::now();
            let (metrics, position) = (
                one_step(
                    StepContext {
                        recipe: &self.recipe,
                        base: self.base,
                        method: self.method.as_ref(),
                        adapter: &self.adapter,
                        params: &mut self.params,
                        log_scale: &self.log_scale,
                    },
                    &prepared,
                    state,
                    clock,
                )?,
                stream.position(),
            );
            state.step += 1;
            state.position = position;
            state.train_secs += clock.elapsed().as_secs_f64();
            let metrics = StepMetrics { train_secs: state.train_secs, ..metrics };
            watch(Event::Step(&metrics))?;
        }
        Ok(())
    }

    fn validation_pairs(&self) -> Result<Option<StsPairs>, Error> {
        let Some(path) = &self.recipe.validation.sts else { return Ok(None) };
        let mut pairs = StsPairs::load(Path::new(path))?;
        let (wanted, all) = (self.recipe.validation.pairs, pairs.pairs.len());
        if wanted > 0 && wanted < all {
            // Evenly spaced: such files hold one source of sentences after the other.
            let mut kept = (0..wanted).map(|i| i * all / wanted).peekable();
            let mut at = 0;
            pairs.pairs.retain(|_| {
                at += 1;
                kept.next_if_eq(&(at - 1)).is_some()
            });
        }
        Ok(Some(pairs))
    }

    fn fit(&self, sample: &[Vec<u32>]) -> Result<Standardisation, Error> {
        let (decoder, view) = (self.base.decoder.detached(), self.adapter.view(false));
        let embedder = Embedder {
            decoder: &decoder,
            tokenizer: &self.base.tokenizer,
            method: self.method.as_ref(),
            adapter: Some(&view),
            standardisation: None,
        };
        embedder.fit_standardisation(sample, &mut |_| {})
    }

    fn validate(
        &self,
        pairs: &StsPairs,
        sample: &[Vec<u32>],
        state: &mut State,
        watch: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let standardisation = self.fit(&sample[..sample.len().min(VALIDATION_ROWS)])?;
        let (decoder, view) = (self.base.decoder.detached(), self.adapter.view(false));
        let embedder = Embedder {
            decoder: &decoder,
            tokenizer: &self.base.tokenizer,
            method: self.method.as_ref(),
            adapter: Some(&view),
            standardisation: Some(&standardisation),
        };
        let spearman =
            score_pairs(pairs, |texts| Ok(embedder.embed(texts, &EmbedOptions::default(), &mut |_| {})?.vectors))?;
        let best = state.best.is_none_or(|(best, _)| spearman > best);
        if best {
            state.best = Some((spearman, state.step));
            self.save_model(&self.options.out.join("best"), sample)?;
        }
        watch(Event::Validation { step: state.step, spearman, best })
    }

    fn save_model(&self, path: &Path, sample: &[Vec<u32>]) -> Result<(), Error> {
        let standardisation = self.fit(sample)?;
        let full = self.recipe.trained == Trained::Full;
        let mut texts =
            vec![("recipe.toml", self.recipe_text.clone()), ("tokenizer.json", self.base.tokenizer.to_json()?)];
        if full {
            let config =
                serde_json::to_string_pretty(self.base.decoder.config()).map_err(|e| Error::Internal(e.to_string()))?;
            texts.push(("decoder_config.json", config));
        }
        let config = GemConfig {
            version: GemConfig::VERSION,
            method: self.method.name().into(),
            settings: self.method.settings(),
            base_model: self.recipe.model.clone(),
            base_fingerprint: self.base.fingerprint.clone(),
            hidden_size: self.base.decoder.config().hidden_size,
            full,
        };
        let weights = full.then_some(self.weights.as_slice());
        GemDir { config, adapter: &self.adapter, standardisation: Some(&standardisation), weights, texts }.save(path)
    }
}

/// What one step reads and changes.
struct StepContext<'a> {
    recipe: &'a Recipe,
    base: &'a BaseModel,
    method: &'a (dyn Method + Send + Sync),
    adapter: &'a Adapter,
    params: &'a mut [Param],
    log_scale: &'a Var,
}

fn one_step(
    context: StepContext<'_>,
    batch: &[(Example, RowRef)],
    state: &mut State,
    clock: Instant,
) -> Result<StepMetrics, Error> {
    let StepContext { recipe, base, method, adapter, params, log_scale } = context;
    let at = (state.step, recipe.steps());
    let plans = (batch.iter().enumerate())
        .map(|(i, (example, _))| {
            // Every row of the run has its own stream of random numbers: a resume needs no generator state.
            let mut rng = Rng::seed_from_u64(recipe.seed);
            rng.set_stream(1 + state.step * recipe.budget.batch_rows as u64 + i as u64);
            method.train_plan(example, &mut rng)
        })
        .collect::<Result<Vec<Plan>, _>>()?;
    let alpha = recipe.loss.alpha.at(at);
    let weight = |loss: Loss| {
        method.objective().terms.iter().filter(|t| t.loss == loss).map(|t| f64::from(t.weight.at(alpha as f32))).sum()
    };
    let log = log_scale.to_vec1::<f32>()?[0];
    let weights =
        LossWeights { next_token: weight(Loss::NextToken), contrastive: weight(Loss::Contrastive), scale: log.exp() };
    let options = StepOptions {
        micro_batch_tokens: recipe.budget.micro_batch_tokens,
        split_frozen: recipe.trained == Trained::Lora,
        hidden_dropout: recipe.loss.hidden_dropout as f32,
        dropout_seed: recipe.seed.wrapping_add(state.step << 20),
    };
    let vars: Vec<Var> = params.iter().map(|p| p.var.clone()).collect();
    let model = StepModel { decoder: &base.decoder, adapter, vars: &vars };
    let mut result = step(&model, &plans, &weights, &options)?;
    if recipe.loss.learnable_temperature {
        let last = result.gradients.len() - 1;
        result.gradients[last] = Some(Tensor::from_vec(vec![result.log_scale_gradient as f32], 1, &Device::Cpu)?);
    }
    let norm = global_norm(&result.gradients)?;
    let loss = weighted(weights.next_token, result.next_token) + weighted(weights.contrastive, result.contrastive);
    guard(&result, (loss, norm), state, batch)?;
    let factor = {
        let o = &recipe.optimizer;
        learning_rate_factor(o.decay, at, o.warmup_ratio, o.floor_ratio)
    };
    let o = &recipe.optimizer;
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
    optimizer::step(params, &result.gradients, (state.step + 1, norm, o.max_grad_norm), settings)?;
    if recipe.loss.learnable_temperature {
        let clamped = log_scale.to_vec1::<f32>()?[0].clamp(0.0, MAX_LOG_SCALE);
        log_scale.set(&Tensor::from_vec(vec![clamped], 1, &Device::Cpu)?)?;
    }
    Ok(StepMetrics {
        step: state.step + 1,
        steps: at.1,
        loss,
        next_token: result.next_token,
        contrastive: result.contrastive,
        alpha,
        grad_norm: norm,
        learning_rate: o.learning_rate * factor,
        temperature: 1.0 / f64::from(weights.scale),
        mean_pairwise_cosine: result.mean_pairwise_cosine,
        tokens_per_sec: result.num_tokens as f64 / clock.elapsed().as_secs_f64(),
        rows: (state.step + 1) * recipe.budget.batch_rows as u64,
        train_secs: 0.0,
    })
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
    let infinite = |x: f64| x.is_infinite();
    if !loss.is_finite() || !norm.is_finite() || infinite(result.next_token) || infinite(result.contrastive) {
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
    match state.first_loss {
        None => state.first_loss = Some(loss),
        Some(first) => state.loss_moved |= (loss - first).abs() > 1e-7 * (1.0 + first.abs()),
    }
    if state.step + 1 >= CONSTANT_STEPS && !state.loss_moved {
        return stop(format!("the loss is {loss} since the first step: nothing is learned"));
    }
    Ok(())
}

fn copy_dir(from: &Path, to: &Path) -> Result<(), Error> {
    let dir = crate::output::atomic::AtomicDir::replace(to)?;
    let file = |e: std::io::Error| Error::File { path: from.into(), reason: e.to_string() };
    for entry in std::fs::read_dir(from).map_err(file)? {
        let entry = entry.map_err(file)?;
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).map_err(file)?;
    }
    Ok(dir.commit()?)
}
