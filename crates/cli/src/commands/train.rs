//! `lapidary train`: a run by a recipe, which goes on where it was ended.

use super::train_watch::Watch;
use crate::context::Context;
use crate::failure::Interrupted;
use crate::{interrupt, progress};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use lapidary::train::{Recipe, RunOptions, Trainer};
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

const EXAMPLES: &str = "\
Examples:
  lapidary train recipes/gem.toml
  lapidary train recipes/gem.toml --out runs/small --set budget.rows=512 --set seed=1
  lapidary train recipes/gem.toml --out runs/all --set method.settings.scope=all
  lapidary train recipes/simcse.toml --set validation.every_steps=25 --set damage.max_kl=0.05 --set damage.max_mmlu_drop=1

With a limit in the recipe's table [damage] (max_kl, nats a token; max_mmlu_drop, points) the damage that `lapidary
certify` measures is measured at every validation, on chats with questions of data/MMLU (damage.mmlu, damage.chats). The
first measurement beyond a limit ends the run, and the model is the best one within it. A scope that leaves the chat as
it is (special, embed) costs nothing and is not measured, unless damage.always says so.

A run that was ended (Ctrl-C, power cut) goes on from its newest checkpoint when the same command is given again.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TrainArgs {
    /// The recipe, a TOML file
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// Change a value of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Directory of the run: model, checkpoints, metrics [default: runs/ and the recipe's name]
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,
    /// Checkpoints that are kept
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1000))]
    keep_checkpoints: u64,
    /// Stop after so many steps of this call, with a checkpoint
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    stop_after_steps: u64,
}

impl TrainArgs {
    fn out(&self) -> PathBuf {
        let named = || Path::new("runs").join(self.recipe.file_stem().unwrap_or("recipe".as_ref()));
        self.out.clone().unwrap_or_else(named)
    }

    fn options(&self) -> RunOptions {
        RunOptions {
            out: self.out(),
            checkpoint_every_steps: self.checkpoint_every,
            keep_checkpoints: self.keep_checkpoints as usize,
            stop_after_steps: self.stop_after_steps,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the recipe, the model, the data or the disk is at fault, a guard stops the run, or the user does.
pub(crate) fn run(args: &TrainArgs, context: &Context) -> Result<()> {
    let path = args.recipe.display().to_string();
    let text = std::fs::read_to_string(&args.recipe).with_context(|| path.clone())?;
    let recipe = Recipe::parse(&text, &args.set).with_context(|| path.clone())?;
    let options = args.options();
    let stop = interrupt::stop_flag("stopping after this step, with a checkpoint")?;
    match to_the_end(recipe, options, &stop, context)? {
        Some((model, _)) => Ok(writeln!(stdout().lock(), "{}", model.display())?),
        None => Ok(()),
    }
}

/// Trains, or goes on training, until the run has its end; the model's directory and the seconds it took. `None` where
/// the run was to stop after some steps.
///
/// # Errors
/// As [`run`].
pub(crate) fn to_the_end(
    recipe: Recipe,
    options: RunOptions,
    stop: &interrupt::StopFlag,
    context: &Context,
) -> Result<Option<(PathBuf, f64)>> {
    let out = options.out.clone();
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let files = context.files(&recipe.model)?;
    let loading = progress::spinner(context, &format!("loading {}", recipe.model))?;
    let mut base = context.load_base(&files).with_context(|| recipe.model.clone())?;
    loading.finish_and_clear();
    let title = format!("{} {}", recipe.method.name, recipe.model);
    let (steps, batch_rows) = (recipe.steps(), recipe.budget.batch_rows);
    let mut trainer = Trainer::new(recipe, &mut base, options)?;
    context.note(&format!(
        "{title}: {} trained numbers, {} steps of {batch_rows} rows, in {}",
        progress::grouped(trainer.num_trained() as u64),
        progress::grouped(steps),
        out.display(),
    ));
    if trainer.measures_damage() {
        context.note("the damage is measured at every validation; the base model is asked first");
    }
    let mut watch = Watch::new(context, &out, steps)?;
    let outcome = trainer.run(stop, &mut |event| watch.on(&event))?;
    watch.finish();
    if !outcome.finished {
        let told =
            format!("stopped after {} of {steps} steps; the same command goes on from there", outcome.state.step);
        if stop.load(Ordering::Relaxed) {
            bail!(Interrupted(told));
        }
        context.note(&told);
        return Ok(None);
    }
    let position = outcome.state.position;
    if position.num_cut + position.num_short > 0 {
        let (cut, short) = (progress::grouped(position.num_cut), progress::grouped(position.num_short));
        context.note(&format!("{cut} texts were too long and cut, {short} too short and passed over"));
    }
    if let Some(beyond) = &outcome.state.over_budget {
        let kept = outcome.state.best.map(|(_, at)| at).or(outcome.state.within_budget);
        context.note(&format!(
            "ended at step {} of {steps}, beyond the damage budget: {beyond}; the model is that of step {}, the best \
             within it",
            outcome.state.step,
            kept.context("a run beyond its budget without a model within it")?,
        ));
    }
    if let Some((spearman, step)) = outcome.state.best {
        context
            .note(&format!("best validation: Spearman {spearman:.2} at step {step}; the model is that of this step"));
    }
    for picture in watch.draw(&title)? {
        context.note(&format!("picture: {}", picture.display()));
    }
    let model = outcome.model.context("a finished run without a model")?;
    watch.leave_records(&model, &outcome.state)?;
    Ok(Some((model, outcome.state.train_secs)))
}
