//! The training loop: batches, updates, validation, checkpoints.

use super::checkpoint::{self, State};
use super::checks::{check_longest_row, check_settings, refuse_to_replace};
use super::damage::{Damage, Gauge, none_within};
use super::optimizer::{Group, Param};
use super::recipe::{Recipe, Trained};
use super::rows::{RowStream, first_rows};
use super::teacher::Teachers;
use super::update::{Batch, StepMetrics, Update};
use super::validation::validation_pairs;
use crate::Error;
use crate::data::sts::StsPairs;
use crate::embed::{EmbedOptions, Embedder};
use crate::eval::language::LanguageModel;
use crate::eval::standardise::Standardisation;
use crate::eval::sts::score_pairs;
use crate::model::{Adapter, BaseModel, Decoder, GemConfig, GemDir, NamedVars};
use crate::text::chat_template::Date;
use kernels::{Device, Var};
use layout::{Method, Rng, SpecialInit};
use rand::SeedableRng as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// Rows over which the standardisation is fitted.
const STANDARDISATION_ROWS: usize = 1024;
/// Rows over which it is fitted for a validation, and over which that of a teacher is.
const FEW_STANDARDISATION_ROWS: usize = 256;
/// The directories that a run writes beside its checkpoints.
const MODEL_DIR: &str = "model";
const BEST_DIR: &str = "best";

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
    /// The damage was measured.
    Damage {
        /// Step, from 1.
        step: u64,
        /// What the run has cost so far.
        damage: &'a Damage,
        /// Within the recipe's limits; the run ends otherwise.
        within_budget: bool,
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
    /// Every step is done, or the damage is beyond its limits; otherwise the run was interrupted after a checkpoint.
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
    teachers: Option<Teachers>,
    /// The base model's decoder as it was, where the damage is measured.
    untrained: Option<Decoder>,
    /// What frozen parts run through, where it is not the base model's decoder.
    prefix: Option<Decoder>,
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
    /// When the method is not trainable, a setting does not fit the model, or the output directory holds another run
    /// or something that is none.
    pub fn new(recipe: Recipe, base: &'a mut BaseModel, options: RunOptions) -> Result<Self, Error> {
        let settings = serde_json::Value::Object(recipe.method.settings.clone());
        let method = build_method(base, &recipe.method.name, settings)?;
        if !method.trainable() {
            return Err(layout::MethodError::NotTrained { method: method.name() }.into());
        }
        for dir in [MODEL_DIR, BEST_DIR].map(|name| options.out.join(name)) {
            refuse_to_replace(&dir)?;
        }
        check_settings(&recipe, method.as_ref(), base.decoder.device().is_cpu())?;
        let teachers = Teachers::new(&recipe.loss.teacher, base)?;
        check_longest_row(&recipe, method.as_ref(), teachers.as_ref(), base)?;
        let special = special_rows(base, method.as_ref())?;
        let other = recipe.prefix_weights.filter(|format| *format != recipe.weights);
        let prefix = other.map(|format| base.decoder.to_append_with(format)).transpose()?;
        base.decoder.set_weight_format(recipe.weights)?;
        let changes_chat = method.adapts_plain_rows() || recipe.trained == Trained::Full;
        let measured = recipe.damage.is_limited() && (changes_chat || recipe.damage.always);
        let untrained = measured.then(|| base.decoder.clone());
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
        let mut resolved = recipe.clone();
        if let serde_json::Value::Object(settings) = method.settings() {
            resolved.method.settings = settings;
        }
        let recipe_text = resolved.to_toml()?;
        let trainer = Self {
            recipe,
            recipe_text,
            base,
            method,
            adapter,
            teachers,
            untrained,
            prefix,
            weights,
            params,
            log_scale,
            options,
        };
        checkpoint::refuse_other_run(&trainer.checkpoints(), &trainer.fresh_state())?;
        Ok(trainer)
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.recipe.steps()
    }

    /// Whether the damage is measured: there is a limit, and the chat can change or the recipe asks for it all the same.
    pub fn measures_damage(&self) -> bool {
        self.untrained.is_some()
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

    fn fresh_state(&self) -> State {
        State {
            recipe: self.recipe_text.clone(),
            base_fingerprint: self.base.fingerprint.clone(),
            cpu_secs: Some(0.0),
            ..State::default()
        }
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
        let fresh = self.fresh_state();
        let out = &self.options.out;
        std::fs::create_dir_all(out).map_err(|e| Error::File { path: out.clone(), reason: e.to_string() })?;
        checkpoint::remove_leftovers(&self.checkpoints())?;
        let mut state = match checkpoint::load(&self.checkpoints(), &fresh, &mut self.params)? {
            Some(state) => {
                watch(Event::Resumed { step: state.step })?;
                state
            }
            None => fresh,
        };
        let started = kernels::process_cpu_secs().zip(state.cpu_secs).map(|(now, earlier)| now - earlier);
        let cpu_secs = || Some(kernels::process_cpu_secs()? - started?);
        let pairs = validation_pairs(&self.recipe.validation)?;
        let sample = first_rows(&self.recipe.data, &self.base.tokenizer, &self.recipe.budget, STANDARDISATION_ROWS)?;
        if let Some(teachers) = &mut self.teachers {
            teachers.fit(self.base, &sample[..sample.len().min(FEW_STANDARDISATION_ROWS)])?;
        }
        let steps = self.recipe.steps();
        let gauge = if state.step < steps && state.over_budget.is_none() { self.gauge()? } else { None };
        let last_step = match self.options.stop_after_steps {
            0 => u64::MAX,
            count => state.step.saturating_add(count),
        };
        while state.step < steps && state.over_budget.is_none() {
            if state.step == last_step || stop.load(Ordering::Relaxed) {
                state.cpu_secs = cpu_secs();
                let path = checkpoint::save(&self.checkpoints(), &state, &self.params, self.options.keep_checkpoints)?;
                watch(Event::Checkpoint(&path))?;
                return Ok(Outcome { finished: false, state, model: None });
            }
            // The stream borrows the tokenizer for as long as no validation or checkpoint needs the model.
            let until = self.next_stop(state.step, steps).min(last_step);
            self.steps_until(until, &mut state, stop, watch)?;
            let step = state.step;
            let due = |every: u64| step == steps || every > 0 && step % every == 0;
            if due(self.recipe.validation.every_steps) {
                self.judge(gauge.as_ref(), pairs.as_ref(), &sample, &mut state, watch)?;
            }
            if due(self.options.checkpoint_every_steps) || state.over_budget.is_some() {
                state.cpu_secs = cpu_secs();
                let path = checkpoint::save(&self.checkpoints(), &state, &self.params, self.options.keep_checkpoints)?;
                watch(Event::Checkpoint(&path))?;
            }
        }
        let (model, best) = (self.options.out.join(MODEL_DIR), self.options.out.join(BEST_DIR));
        match state.best.map(|(_, at)| at).or(state.within_budget) {
            // What is beyond the budget is never given out, whatever has become of the directory.
            Some(at) if at != state.step && (GemConfig::is_gem(&best) || state.over_budget.is_some()) => {
                copy_dir(&best, &model)?;
            }
            _ => self.save_model(&model, &sample)?,
        }
        state.cpu_secs = cpu_secs();
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
        let (recipe, method, tokenizer) = (&self.recipe, self.method.as_ref(), &self.base.tokenizer);
        let mut rows = RowStream::open(&recipe.data, tokenizer, &recipe.budget, recipe.seed, state.position)?
            .pairs_alone(method.needs_positive());
        std::thread::scope(|scope| {
            // A batch is read while the one before it is learned from, and no more than one.
            let (sender, batches) = mpsc::sync_channel(0);
            let steps = state.step..until;
            scope.spawn(move || Batch::read_all(&mut rows, recipe, method, steps, &sender));
            while state.step < until && !stop.load(Ordering::Relaxed) {
                let clock = Instant::now();
                let batch = batches.recv().map_err(|_| Error::Internal("no batch of rows was read".into()))??;
                let update = Update {
                    recipe,
                    base: self.base,
                    prefix: self.prefix.as_ref().unwrap_or(&self.base.decoder),
                    method,
                    adapter: &self.adapter,
                    teachers: self.teachers.as_ref(),
                    params: &mut self.params,
                    log_scale: &self.log_scale,
                };
                let metrics = update.run(&batch, state, clock)?;
                state.step += 1;
                state.position = batch.position;
                state.train_secs = metrics.train_secs;
                watch(Event::Step(&metrics))?;
            }
            Ok(())
        })
    }

    /// What measures the damage, where it is measured.
    fn gauge(&mut self) -> Result<Option<Gauge>, Error> {
        let Some(untrained) = self.untrained.clone() else { return Ok(None) };
        // One day for all runs: a template that writes it would else give tomorrow's run other chats.
        if let Some(day) = Date::from_unix_secs(0) {
            self.base.chat_template = self.base.chat_template.take().map(|template| template.with_date(day));
        }
        Gauge::new(&self.recipe.damage, self.base, untrained).map(Some)
    }

    /// Measures the damage, and validates what is within its limits.
    fn judge(
        &self,
        gauge: Option<&Gauge>,
        pairs: Option<&StsPairs>,
        sample: &[Vec<u32>],
        state: &mut State,
        watch: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if let Some(gauge) = gauge {
            let (decoder, view) = (self.base.decoder.detached(), self.adapter.view(false));
            let damage = gauge.measure(&LanguageModel {
                base: self.base,
                decoder: &decoder,
                adapter: Some(&view),
                adapts_plain_rows: self.method.adapts_plain_rows(),
                anchors: self.method.anchors(),
            })?;
            state.over_budget = damage.beyond(&self.recipe.damage);
            watch(Event::Damage { step: state.step, damage: &damage, within_budget: state.over_budget.is_none() })?;
            if let Some(beyond) = &state.over_budget {
                return if state.within_budget.is_some() { Ok(()) } else { Err(none_within(state.step, beyond)) };
            }
            state.within_budget = Some(state.step);
            if pairs.is_none() {
                // Nothing tells which model is the best: the one that has learned longest.
                self.save_model(&self.options.out.join(BEST_DIR), sample)?;
            }
        }
        pairs.map_or(Ok(()), |pairs| self.validate(pairs, sample, state, watch))
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
        let standardisation = self.fit(&sample[..sample.len().min(FEW_STANDARDISATION_ROWS)])?;
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
            self.save_model(&self.options.out.join(BEST_DIR), sample)?;
        }
        watch(Event::Validation { step: state.step, spearman, best })
    }

    fn save_model(&self, path: &Path, sample: &[Vec<u32>]) -> Result<(), Error> {
        let standardisation = self.fit(sample)?;
        let full = self.recipe.trained == Trained::Full;
        let texts = vec![("recipe.toml", self.recipe_text.clone()), ("tokenizer.json", self.base.tokenizer.to_json()?)];
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

fn copy_dir(from: &Path, to: &Path) -> Result<(), Error> {
    let dir = crate::output::atomic::AtomicDir::replace(to)?;
    let file = |e: std::io::Error| Error::File { path: from.into(), reason: e.to_string() };
    for entry in std::fs::read_dir(from).map_err(file)? {
        let entry = entry.map_err(file)?;
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).map_err(file)?;
    }
    Ok(dir.commit()?)
}
