//! `lapidary sweep`: variants of a recipe, each with several seeds, trained and measured one after the other.

use super::eval::raw_and_standardised;
use super::train;
use crate::context::Context;
use crate::table::aligned;
use crate::{interrupt, progress};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use lapidary::Lapidary;
use lapidary::data::sts::StsPairs;
use lapidary::output::atomic::write_file;
use lapidary::report::bars::{Series, bar_comparison};
use lapidary::train::{Recipe, RunOptions};
use serde::{Deserialize, Serialize};
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  lapidary sweep sweeps/num_special_tokens.toml
  lapidary sweep sweeps/num_special_tokens.toml --set budget.rows=512 --out /tmp/sweep

A sweep that was ended goes on where it was when the same command is given again: what has been trained and measured
is in its directory, a file for each run.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SweepArgs {
    /// The sweep, a TOML file: recipe, seeds, sts, and variants with name and set
    #[arg(value_name = "SWEEP")]
    sweep: PathBuf,
    /// Change a value of the recipe in every run; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Directory of the runs, the table and the picture [default: runs/ and the sweep's name]
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What is varied and measured.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    /// The recipe that all runs start from; its path as seen from the current directory.
    recipe: PathBuf,
    /// Changes that all runs share.
    #[serde(default)]
    set: Vec<String>,
    seeds: Vec<u64>,
    /// STS files to measure on.
    sts: Vec<PathBuf>,
    variants: Vec<Variant>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    #[serde(default)]
    set: Vec<String>,
}

/// What one run gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Scores {
    /// The changes the run was made with, seed included: another list is another run.
    set: Vec<String>,
    /// Hash of the recipe that was changed.
    recipe: String,
    train_secs: f64,
    /// Spearman times 100 by file, standardised where the model has a standardisation.
    sts: Vec<(String, f64)>,
}

/// Runs the command.
///
/// # Errors
/// When the sweep, a recipe, a file or the disk is at fault, or the user stops it.
pub(crate) fn run(args: &SweepArgs, context: &Context) -> Result<()> {
    let path = args.sweep.display().to_string();
    let text = std::fs::read_to_string(&args.sweep).with_context(|| path.clone())?;
    let sweep: Sweep = toml::from_str(&text).map_err(|e| anyhow::anyhow!("{path}: {}", e.message()))?;
    if sweep.variants.is_empty() || sweep.seeds.is_empty() || sweep.sts.is_empty() {
        bail!("{path}: expected at least one of variants, of seeds and of sts");
    }
    let recipe = std::fs::read_to_string(&sweep.recipe).with_context(|| sweep.recipe.display().to_string())?;
    let sets: Vec<(String, StsPairs)> =
        sweep.sts.iter().map(|file| Ok((task_name(file), StsPairs::load(file)?))).collect::<Result<_>>()?;
    let named = || Path::new("runs").join(args.sweep.file_stem().unwrap_or("sweep".as_ref()));
    let out = args.out.clone().unwrap_or_else(named);
    let changes = |variant: &Variant, seed: u64| -> Vec<String> {
        let own = std::iter::once(format!("seed={seed}"));
        sweep.set.iter().chain(&args.set).chain(&variant.set).cloned().chain(own).collect()
    };
    // A mistake in the last variant is told before the first is trained.
    for variant in &sweep.variants {
        Recipe::parse(&recipe, &changes(variant, sweep.seeds[0]))
            .with_context(|| format!("{path}: {}", variant.name))?;
    }
    let stop = interrupt::stop_flag("stopping after this step, with a checkpoint")?;
    let mut all = Vec::new();
    for variant in &sweep.variants {
        let mut runs = Vec::new();
        for seed in &sweep.seeds {
            let dir = out.join(directory_name(&variant.name)).join(format!("seed-{seed}"));
            let set = changes(variant, *seed);
            context.note(&format!("{}, seed {seed}", variant.name));
            runs.push(scores(&recipe, set, (&sets, &dir), &stop, context).with_context(|| variant.name.clone())?);
        }
        all.push((variant.name.clone(), runs));
    }
    let names: Vec<String> = sets.into_iter().map(|(name, _)| name).collect();
    finish(&names, &all, &out, context)
}

/// A file's name without its extensions, or its directory's where that says more (`STSBenchmark/test.jsonl.gz`).
fn task_name(file: &Path) -> String {
    let stem = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = stem.split('.').next().unwrap_or_default().to_owned();
    let dir = file.parent().and_then(Path::file_name).map(|dir| dir.to_string_lossy().into_owned());
    match dir {
        Some(dir) if ["test", "validation", "dev", "train"].contains(&stem.as_str()) => format!("{dir} {stem}"),
        _ => stem,
    }
}

fn directory_name(variant: &str) -> String {
    variant.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.=".contains(c) { c } else { '-' }).collect()
}

/// The scores of one run: from its file, or trained and measured.
fn scores(
    recipe: &str,
    set: Vec<String>,
    (sets, dir): (&[(String, StsPairs)], &Path),
    stop: &interrupt::StopFlag,
    context: &Context,
) -> Result<Scores> {
    let file = dir.join("scores.json");
    let hash = lapidary::fingerprint_of(&[recipe.as_bytes()]);
    if let Ok(text) = std::fs::read_to_string(&file) {
        let kept: Scores = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        let names = |sts: &[(String, f64)]| sts.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let wanted: Vec<String> = sets.iter().map(|(name, _)| name.clone()).collect();
        if kept.set != set || kept.recipe != hash || names(&kept.sts) != wanted {
            bail!(
                "{}: made with {:?} on {:?}, or from another recipe; expected {set:?} on {wanted:?} (another --out keeps \
                 both)",
                file.display(),
                kept.set,
                names(&kept.sts)
            );
        }
        return Ok(kept);
    }
    let recipe = Recipe::parse(recipe, &set)?;
    let files = context.files(&recipe.model)?;
    let options = RunOptions { out: dir.into(), checkpoint_every_steps: 50, keep_checkpoints: 1, stop_after_steps: 0 };
    let finished = train::to_the_end(recipe, options, stop, context)?;
    let (model_dir, train_secs) = finished.context("a run without an end")?;
    let model = Lapidary::load(&model_dir, &files)?;
    let mut sts = Vec::new();
    for (name, set) in sets {
        let (raw, standardised) = raw_and_standardised(&model, set, name, context)?;
        sts.push((name.clone(), standardised.unwrap_or(raw)));
    }
    let scores = Scores { set, recipe: hash, train_secs, sts };
    let text = serde_json::to_string_pretty(&scores)? + "\n";
    write_file(&file, |file| file.write_all(text.as_bytes()))?;
    Ok(scores)
}

/// Mean and standard deviation (of a sample, 0 for one).
fn mean_sd(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// The table on the terminal and in a file, and the picture.
fn finish(names: &[String], all: &[(String, Vec<Scores>)], out: &Path, context: &Context) -> Result<()> {
    let head = std::iter::once("variant".to_owned()).chain(names.iter().cloned()).chain(["seconds".to_owned()]);
    let mut rows = vec![head.collect::<Vec<_>>()];
    let mut series: Vec<Series> = names.iter().map(|name| Series { name: name.clone(), values: Vec::new() }).collect();
    for (variant, runs) in all {
        let mut row = vec![variant.clone()];
        for (at, series) in series.iter_mut().enumerate() {
            let (mean, sd) = mean_sd(&runs.iter().map(|run| run.sts[at].1).collect::<Vec<_>>());
            row.push(format!("{mean:.2} ± {sd:.2}"));
            series.values.push(Some(mean));
        }
        let (secs, _) = mean_sd(&runs.iter().map(|run| run.train_secs).collect::<Vec<_>>());
        row.push(progress::grouped(secs.round() as u64));
        rows.push(row);
    }
    let table = aligned(&rows);
    write_file(&out.join("table.txt"), |file| file.write_all(table.as_bytes()))?;
    let groups: Vec<String> = all.iter().map(|(variant, _)| variant.clone()).collect();
    let title = format!("Spearman x 100, mean of {} seeds", all.first().map_or(0, |(_, runs)| runs.len()));
    match bar_comparison(&title, &groups, &series) {
        Ok(png) => {
            let picture = out.join("sweep.png");
            write_file(&picture, |file| file.write_all(&png))?;
            context.note(&format!("picture: {}", picture.display()));
        }
        Err(error) => context.note(&format!("no picture: {error}")),
    }
    Ok(stdout().lock().write_all(table.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_and_variants() {
        assert_eq!(task_name(Path::new("x/STSBenchmark/validation.jsonl.gz")), "STSBenchmark validation");
        assert_eq!(task_name(Path::new("pairs.csv")), "pairs");
        assert_eq!(directory_name("k = 1, α"), "k-=-1---");
        let (mean, sd) = mean_sd(&[1.0, 2.0, 3.0]);
        assert_eq!((mean, sd, mean_sd(&[5.0])), (2.0, 1.0, (5.0, 0.0)));
    }
}
