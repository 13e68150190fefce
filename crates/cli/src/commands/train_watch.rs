//! What a training run shows and records: a bar or lines, `metrics.jsonl`, TensorBoard events, pictures.

use crate::context::Context;
use crate::progress;
use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use lapidary::Error;
use lapidary::output::atomic::write_file;
use lapidary::output::metrics_log::MetricsLog;
use lapidary::output::tensorboard::EventWriter;
use lapidary::report::curves::{LossPoint, loss_curves, validation_curve};
use lapidary::train::{Damage, Event, State, StepMetrics};
use serde_json::{Value, json};
use std::io::{IsTerminal as _, Write as _, stderr};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const METRICS_FILE: &str = "metrics.jsonl";
/// What a finished run has cost.
const TRAINING_FILE: &str = "training.json";
const EVENTS_DIR: &str = "tensorboard";
/// Lines of a whole run where there is no terminal for a bar.
const NUM_LINES: u64 = 40;

/// Watches a run.
pub(crate) struct Watch<'a> {
    context: &'a Context,
    out: &'a Path,
    steps: u64,
    bar: ProgressBar,
    /// Where errors go is no terminal: lines instead of a bar.
    in_lines: bool,
    /// Opened with the first event, which tells whether the run is new.
    log: Option<MetricsLog>,
    events: EventWriter,
    validation: Option<f64>,
}

impl<'a> Watch<'a> {
    /// A watch over a run of `steps` steps in the directory `out`.
    ///
    /// # Errors
    /// When the files cannot be created.
    pub(crate) fn new(context: &'a Context, out: &'a Path, steps: u64) -> Result<Self> {
        let dir = out.join(EVENTS_DIR);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let events = EventWriter::create(&dir, now())?;
        let bar = progress::bar(context, steps, "steps")?;
        Ok(Self { context, out, steps, bar, in_lines: !stderr().is_terminal(), log: None, events, validation: None })
    }

    /// Shows and records one event.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn on(&mut self, event: &Event<'_>) -> Result<(), Error> {
        match event {
            Event::Resumed { step } => {
                self.log = Some(MetricsLog::resume(&self.out.join(METRICS_FILE), *step)?);
                self.say(&format!("going on after step {step} of an earlier run"));
                self.bar.set_position(*step);
                self.bar.reset_eta();
            }
            Event::Step(metrics) => self.step(metrics)?,
            Event::Validation { step, spearman, best } => self.validation(*step, *spearman, *best)?,
            Event::Damage { step, damage, within_budget } => self.damage(*step, damage, *within_budget)?,
            Event::Checkpoint(_) => self.events.flush()?,
        }
        Ok(())
    }

    fn log(&mut self) -> Result<&mut MetricsLog, Error> {
        let log = match self.log.take() {
            Some(log) => log,
            None => MetricsLog::create(&self.out.join(METRICS_FILE))?,
        };
        Ok(self.log.insert(log))
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), Error> {
        let mut row = serde_json::to_value(metrics).map_err(|error| Error::Internal(error.to_string()))?;
        // The log writes the step itself.
        if let Value::Object(row) = &mut row {
            row.remove("step");
        }
        self.log()?.append(metrics.step, &row)?;
        let scalars = [
            ("loss/total", metrics.loss),
            ("loss/next_token", metrics.next_token),
            ("loss/contrastive", metrics.contrastive),
            ("loss/alignment", metrics.alignment),
            ("loss/similarity", metrics.similarity),
            ("train/alpha", metrics.alpha),
            ("train/grad_norm", metrics.grad_norm),
            ("train/learning_rate", metrics.learning_rate),
            ("train/temperature", metrics.temperature),
            ("train/mean_pairwise_cosine", metrics.mean_pairwise_cosine),
            ("train/tokens_per_sec", metrics.tokens_per_sec),
        ];
        for (tag, value) in scalars.into_iter().filter(|(_, value)| value.is_finite()) {
            self.events.scalar(tag, metrics.step, value as f32, now())?;
        }
        let line = self.line(metrics);
        let every = (self.steps / NUM_LINES).max(1);
        if self.in_lines && (metrics.step.is_multiple_of(every) || metrics.step == 1 || metrics.step == self.steps) {
            self.context.note(&format!("step {}/{}  {line}", metrics.step, self.steps));
        }
        self.bar.set_message(line);
        self.bar.set_position(metrics.step);
        Ok(())
    }

    /// Losses and speed in a few words.
    fn line(&self, metrics: &StepMetrics) -> String {
        let parts = [
            ("next_token", metrics.next_token),
            ("contrastive", metrics.contrastive),
            ("alignment", metrics.alignment),
            ("similarity", metrics.similarity),
        ];
        let losses: Vec<String> =
            parts.iter().filter(|(_, loss)| loss.is_finite()).map(|(name, loss)| format!("{name} {loss:.3}")).collect();
        let validation = self.validation.map_or(String::new(), |spearman| format!("  validation {spearman:.2}"));
        let speed = progress::grouped(metrics.tokens_per_sec as u64);
        format!("loss {:.3} ({})  {speed} tokens/s{validation}", metrics.loss, losses.join(", "))
    }

    fn validation(&mut self, step: u64, spearman: f64, best: bool) -> Result<(), Error> {
        self.validation = Some(spearman);
        self.log()?.append(step, &json!({"validation_spearman": spearman, "best": best}))?;
        self.events.scalar("validation/spearman", step, spearman as f32, now())?;
        self.say(&format!(
            "step {step}: validation Spearman {spearman:.2}{}",
            if best { ", the best so far" } else { "" }
        ));
        Ok(())
    }

    fn damage(&mut self, step: u64, damage: &Damage, within_budget: bool) -> Result<(), Error> {
        let Damage { mean_kl, max_kl, mmlu_drop } = *damage;
        let row = json!({
            "damage_mean_kl": mean_kl, "damage_max_kl": max_kl, "damage_mmlu_drop": mmlu_drop,
            "within_budget": within_budget,
        });
        self.log()?.append(step, &row)?;
        let scalars =
            [("damage/mean_kl", Some(mean_kl)), ("damage/max_kl", Some(max_kl)), ("damage/mmlu_drop", mmlu_drop)];
        for (tag, value) in scalars.into_iter().filter_map(|(tag, value)| Some((tag, value?))) {
            self.events.scalar(tag, step, value as f32, now())?;
        }
        let mmlu = mmlu_drop.map_or(String::new(), |drop| format!(", MMLU {:+.2} points", -drop));
        let verdict = if within_budget { "" } else { ", beyond the budget" };
        self.say(&format!("step {step}: mean KL(base || model) {mean_kl:.6} nats{mmlu}{verdict}"));
        Ok(())
    }

    /// A line above the bar.
    fn say(&self, text: &str) {
        if self.in_lines || self.context.quiet {
            self.context.note(text);
        } else {
            self.bar.println(text);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Puts the metrics and the cost of the whole run into the model's directory, to stay with what they are of.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub(crate) fn leave_records(&self, model: &Path, state: &State) -> Result<()> {
        let path = self.out.join(METRICS_FILE);
        let metrics = std::fs::read(&path).with_context(|| path.display().to_string())?;
        write_file(&model.join(METRICS_FILE), |file| file.write_all(&metrics))?;
        let cost = json!({"steps": state.step, "train_secs": state.train_secs, "cpu_secs": state.cpu_secs});
        let text = serde_json::to_string_pretty(&cost)? + "\n";
        Ok(write_file(&model.join(TRAINING_FILE), |file| file.write_all(text.as_bytes()))?)
    }

    /// The losses of the whole run, earlier calls included.
    ///
    /// # Errors
    /// When the metrics cannot be read.
    pub(crate) fn losses(&self) -> Result<Vec<LossPoint>> {
        Ok(read_curves(&self.out.join(METRICS_FILE))?.0)
    }

    /// Draws the curves of the whole run, earlier calls included; returns the pictures' files.
    ///
    /// # Errors
    /// When the metrics cannot be read or a picture not be written.
    pub(super) fn draw(&self, title: &str) -> Result<Vec<PathBuf>> {
        let path = self.out.join(METRICS_FILE);
        let (losses, validation) = read_curves(&path)?;
        let mut pictures = Vec::new();
        let mut write = |name: &str, png: &[u8]| -> Result<()> {
            let path = self.out.join(name);
            write_file(&path, |file| file.write_all(png))?;
            pictures.push(path);
            Ok(())
        };
        if !losses.is_empty() {
            write("loss.png", &loss_curves(title, &losses)?)?;
        }
        if validation.len() > 1 {
            write("validation.png", &validation_curve(&format!("{title}: validation Spearman"), &validation, &[])?)?;
        }
        Ok(pictures)
    }
}

/// What training the model in `dir` has cost, where it was trained by this program: its `training.json`, or of a run
/// without one the seconds that its metrics tell.
pub(crate) fn training_cost(dir: &Path) -> Option<Value> {
    if let Ok(text) = std::fs::read_to_string(dir.join(TRAINING_FILE)) {
        return serde_json::from_str(&text).ok();
    }
    let metrics = std::fs::read_to_string(dir.join(METRICS_FILE)).ok()?;
    let steps = metrics.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let last = steps.into_iter().find(|row| row["train_secs"].is_number())?;
    Some(json!({"steps": last["step"], "train_secs": last["train_secs"]}))
}

/// Losses, and validation scores by step.
type Curves = (Vec<LossPoint>, Vec<(u64, f64)>);

/// Losses and validation scores of a metrics file.
fn read_curves(path: &Path) -> Result<Curves> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let (mut losses, mut validation) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
        let step = row["step"].as_u64().unwrap_or(0);
        if let Some(spearman) = row["validation_spearman"].as_f64() {
            validation.push((step, spearman));
            continue;
        }
        let loss = |name: &str| row[name].as_f64();
        let point = LossPoint {
            step,
            next_token: loss("next_token"),
            contrastive: loss("contrastive"),
            alignment: loss("alignment"),
            similarity: loss("similarity"),
        };
        if point.next_token.or(point.contrastive).or(point.alignment).or(point.similarity).is_some() {
            losses.push(point);
        }
    }
    Ok((losses, validation))
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::read_curves;

    #[test]
    fn curves_are_read_back_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let text = "{\"step\":1,\"next_token\":3.0,\"contrastive\":null}\n{\"step\":2,\"contrastive\":1.0}\n\
                    {\"step\":2,\"validation_spearman\":70.5,\"best\":true}\n";
        std::fs::write(&path, text).unwrap();
        let (losses, validation) = read_curves(&path).unwrap();
        let found: Vec<_> = losses.iter().map(|point| (point.step, point.next_token, point.contrastive)).collect();
        assert_eq!(found, [(1, Some(3.0), None), (2, None, Some(1.0))]);
        assert_eq!(validation, [(2, 70.5)]);
    }
}
