//! `lapidary sweep`: variants of a recipe, each with several seeds, trained and measured one after the other.

use super::eval::tasks::{TaskOptions, measure_tasks};
use super::eval::{raw_and_standardised, standardise};
use super::train_watch::training_cost;
use super::{report, train};
use crate::args::EmbedModelArgs;
use crate::context::Context;
use crate::failure::Interrupted;
use crate::table::aligned;
use crate::{interrupt, progress};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use lapidary::Lapidary;
use lapidary::data::sts::StsPairs;
use lapidary::layout;
use lapidary::model::WeightFormat;
use lapidary::output::atomic::write_file;
use lapidary::report::ReportError;
use lapidary::report::bars::{Series, bar_comparison};
use lapidary::report::html::{Block, Cell, Figure, Page, Section, Table};
use lapidary::report::runs::run_scores;
use lapidary::train::{Recipe, RunOptions};
use serde::{Deserialize, Serialize};
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  lapidary sweep sweeps/num_special_tokens.toml
  lapidary sweep sweeps/num_special_tokens.toml --set budget.rows=512 --out /tmp/sweep
  lapidary sweep sweeps/methods.toml --tasks ~/mteb --sts ~/mteb/STSBenchmark/validation.jsonl.gz

A sweep that was ended goes on where it was when the same command is given again: what has been
trained and measured is in its directory.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SweepArgs {
    /// The sweep, a TOML file: seeds, what to measure on, and variants of a recipe or models as they are
    #[arg(value_name = "SWEEP")]
    sweep: PathBuf,
    /// Change a value of the recipe in every run; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Measure on these STS files too
    #[arg(long, value_name = "FILE", num_args = 1..)]
    sts: Vec<PathBuf>,
    /// Measure on the tasks of this directory too, as `eval tasks` does
    #[arg(long, value_name = "DIR")]
    tasks: Option<PathBuf>,
    /// Directory of the runs and of the report [default: runs/ and the sweep's name]
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What is varied and measured.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    /// Title of the page [default: the file's name].
    title: Option<String>,
    /// The recipe that all runs start from; its path as seen from the current directory.
    recipe: Option<PathBuf>,
    /// Changes that all runs share.
    #[serde(default)]
    set: Vec<String>,
    seeds: Vec<u64>,
    /// STS files to measure on.
    #[serde(default)]
    sts: Vec<PathBuf>,
    /// How the tasks of `--tasks` are measured.
    #[serde(default)]
    tasks: TaskOptions,
    /// Texts to take mean and deviation of each dimension from, for models that are measured as they are.
    #[serde(default)]
    standardise_on: Vec<String>,
    /// Number format of the weights while measuring.
    #[serde(default)]
    weights: WeightFormat,
    variants: Vec<Variant>,
}

/// A recipe with changes, or, with `model` or `method`, a model as it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    /// In the place of the sweep's.
    recipe: Option<PathBuf>,
    #[serde(default)]
    set: Vec<String>,
    /// A GEM, or a base model for `method`.
    model: Option<String>,
    /// How the base model embeds, without training.
    method: Option<String>,
}

/// What one run gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Scores {
    /// The changes the run was made with, seed included, or the model and method: another list is another run.
    set: Vec<String>,
    /// Hash of the recipe that was changed; of nothing where none was.
    recipe: String,
    /// Hash of everything but the model that changes a score.
    measured: String,
    /// Of the model.
    fingerprint: String,
    /// Seconds of the process that trained, all its threads; none where nothing was trained, or the system does not tell.
    cpu_secs: Option<f64>,
    /// By file, Spearman times 100, standardised where the model has a standardisation; then by task.
    figures: Vec<(String, f64)>,
}

/// What to measure, and with what.
struct Measures<'a> {
    sts: Vec<(String, StsPairs)>,
    tasks: Option<&'a Path>,
    options: &'a TaskOptions,
    standardise_on: &'a [String],
    weights: WeightFormat,
    results: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When the sweep, a recipe, a file or the disk is at fault, or the user stops it.
pub(crate) fn run(args: &SweepArgs, context: &Context) -> Result<()> {
    let path = args.sweep.display().to_string();
    let text = std::fs::read_to_string(&args.sweep).with_context(|| path.clone())?;
    let sweep: Sweep = toml::from_str(&text).map_err(|e| anyhow::anyhow!("{path}: {}", e.message()))?;
    let sts: Vec<&PathBuf> = sweep.sts.iter().chain(&args.sts).collect();
    if sweep.variants.is_empty() || sweep.seeds.is_empty() || (sts.is_empty() && args.tasks.is_none()) {
        bail!("{path}: expected at least one of variants, of seeds, and of sts or --tasks");
    }
    let named = || Path::new("runs").join(args.sweep.file_stem().unwrap_or("sweep".as_ref()));
    let out = args.out.clone().unwrap_or_else(named);
    let measures = Measures {
        sts: sts.into_iter().map(|file| Ok((task_name(file), StsPairs::load(file)?))).collect::<Result<_>>()?,
        tasks: args.tasks.as_deref(),
        options: &sweep.tasks,
        standardise_on: &sweep.standardise_on,
        weights: sweep.weights,
        results: out.join("results"),
    };
    // A mistake in what is measured, or in the last variant, is told before the first is trained.
    if let Some(tasks) = &args.tasks {
        sweep.tasks.check(tasks)?;
    }
    if let Some(missing) = sweep.standardise_on.iter().find(|file| !Path::new(file).is_file()) {
        bail!("{path}: standardise_on: no file {missing}");
    }
    let plan = |variant: &Variant| -> Result<Vec<Run>> {
        if variant.model.is_some() || variant.method.is_some() {
            let method = variant.method.as_deref().filter(|method| !layout::names().contains(method));
            if let Some(method) = method {
                bail!("unknown method {method:?}; expected one of {}", layout::names().join(", "));
            }
            if variant.recipe.is_some() {
                bail!("expected a recipe, or a model or method as it is, found both");
            }
            return Ok(vec![Run::as_it_is(variant)]);
        }
        let recipe = variant.recipe.as_ref().or(sweep.recipe.as_ref()).context("no recipe, and no model or method")?;
        let text = std::fs::read_to_string(recipe).with_context(|| recipe.display().to_string())?;
        let changes = || sweep.set.iter().chain(&args.set).chain(&variant.set).cloned();
        let run = |seed: &u64| Run::Recipe(text.clone(), changes().chain([format!("seed={seed}")]).collect());
        let runs: Vec<Run> = sweep.seeds.iter().map(run).collect();
        runs.iter().try_for_each(Run::check)?;
        Ok(runs)
    };
    let plans: Vec<Vec<Run>> = (sweep.variants.iter())
        .map(|variant| plan(variant).with_context(|| format!("{path}: {}", variant.name)))
        .collect::<Result<_>>()?;
    let stop = interrupt::stop_flag("stopping after this step or task; what is done is kept")?;
    let (mut all, mut failed) = (Vec::new(), Vec::new());
    for (variant, plan) in sweep.variants.iter().zip(plans) {
        let mut runs = Vec::new();
        for (number, run) in plan.iter().enumerate() {
            let name = run.directory(number, &sweep.seeds);
            context.note(&format!("{}, {name}", variant.name));
            let dir = out.join(directory_name(&variant.name)).join(&name);
            let called = format!("{}, {name}", variant.name);
            match scores(run, &measures, (&called, &dir), &stop, context) {
                Ok(found) => runs.push(found),
                Err(error) if error.is::<Interrupted>() => return Err(error),
                // One variant that cannot be made does not keep the others from being compared.
                Err(error) => failed.push(format!("{called}: {error:#}")),
            }
        }
        if !runs.is_empty() {
            all.push((variant.name.clone(), runs));
        }
    }
    let title =
        sweep.title.unwrap_or_else(|| args.sweep.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    finish(&title, &all, &out, context)?;
    if failed.is_empty() { Ok(()) } else { bail!("runs that failed: {}; {}", failed.len(), failed.join("; ")) }
}

/// One run of a variant.
enum Run {
    /// A recipe's text and the changes to it.
    Recipe(String, Vec<String>),
    /// A model as it is.
    Model(Box<EmbedModelArgs>),
}

impl Run {
    fn as_it_is(variant: &Variant) -> Self {
        let mut args = EmbedModelArgs::default();
        (args.method, args.settings, args.model.model) =
            (variant.method.clone(), variant.set.clone(), variant.model.clone());
        Self::Model(Box::new(args))
    }

    fn check(&self) -> Result<()> {
        if let Self::Recipe(text, set) = self {
            Recipe::parse(text, set)?;
        }
        Ok(())
    }

    fn directory(&self, number: usize, seeds: &[u64]) -> String {
        match self {
            Self::Recipe(..) => format!("seed-{}", seeds[number]),
            Self::Model(_) => "as-it-is".to_owned(),
        }
    }

    /// What tells this run from another: the changes, and a hash of what was changed.
    fn key(&self) -> (Vec<String>, String) {
        match self {
            Self::Recipe(text, set) => (set.clone(), lapidary::fingerprint_of(&[text.as_bytes()])),
            Self::Model(model) => {
                let named = [&model.model.model, &model.method].into_iter().flatten().cloned();
                (named.chain(model.settings.clone()).collect(), lapidary::fingerprint_of(&[]))
            }
        }
    }
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
    run: &Run,
    measures: &Measures<'_>,
    (called, dir): (&str, &Path),
    stop: &interrupt::StopFlag,
    context: &Context,
) -> Result<Scores> {
    let file = dir.join("scores.json");
    let (set, recipe) = run.key();
    let mut kept: Option<Scores> = None;
    if let Ok(text) = std::fs::read_to_string(&file) {
        let found: Scores = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        if found.set != set || found.recipe != recipe || found.measured != measures.described()? {
            bail!(
                "{}: made with {:?}, or from another recipe, or measured otherwise; expected {set:?} (another --out keeps both)",
                file.display(),
                found.set
            );
        }
        kept = Some(found);
    }
    // A model as it is may be another one by now: it is asked each time.
    if let (Run::Recipe(..), Some(kept)) = (run, kept.as_ref().filter(|kept| measures.are_in(kept))) {
        return Ok(kept.clone());
    }
    let (mut model, loaded_as) = match run {
        Run::Recipe(text, set) => {
            let recipe = Recipe::parse(text, set)?;
            let files = context.files(&recipe.model)?;
            let options =
                RunOptions { out: dir.into(), checkpoint_every_steps: 50, keep_checkpoints: 1, stop_after_steps: 0 };
            let gem = match &kept {
                Some(_) => dir.join("model"),
                None => train::to_the_end(recipe, options, stop, context)?.context("a run without an end")?.0,
            };
            let mut args = EmbedModelArgs::default();
            args.model.model = Some(gem.display().to_string());
            (Lapidary::load(&gem, &files)?, args)
        }
        Run::Model(args) => (context.load_to_embed(args)?, args.as_ref().clone()),
    };
    model.set_weight_format(measures.weights)?;
    let fingerprint = model.fingerprint().to_owned();
    if let Some(kept) = kept.filter(|kept| kept.fingerprint == fingerprint && measures.are_in(kept)) {
        return Ok(kept);
    }
    if model.standardisation().is_none() {
        standardise(&mut model, measures.standardise_on, context)?;
    }
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let cost = training_cost(Path::new(&loaded_as.model.name()));
    let cpu_secs = cost.and_then(|cost| cost["cpu_secs"].as_f64());
    let measured = measures.described()?;
    let mut scores = Scores { set, recipe, measured, fingerprint, cpu_secs, figures: Vec::new() };
    for (name, set) in &measures.sts {
        let (raw, standardised) = raw_and_standardised(&model, set, name, context)?;
        scores.figures.push((name.clone(), standardised.unwrap_or(raw)));
    }
    if let Some(tasks) = measures.tasks {
        scores.figures.extend(measure_tasks(
            (&model, &loaded_as),
            (tasks, &measures.results, called),
            measures.options,
            context,
        )?);
    }
    let text = serde_json::to_string_pretty(&scores)? + "\n";
    write_file(&file, |file| file.write_all(text.as_bytes()))?;
    Ok(scores)
}

impl Measures<'_> {
    /// Hash of the STS pairs, the number format, and the texts to standardise on.
    fn described(&self) -> Result<String> {
        let mut parts = vec![format!("{:?} {:?}", self.weights, self.sts).into_bytes()];
        for file in self.standardise_on {
            parts.push(std::fs::read(file).with_context(|| file.clone())?);
        }
        Ok(lapidary::fingerprint_of(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }

    /// Whether nothing is left to measure; tasks have their own files, which are asked each time.
    fn are_in(&self, scores: &Scores) -> bool {
        self.tasks.is_none() && self.sts.iter().map(|(name, _)| name).eq(scores.figures.iter().map(|(name, _)| name))
    }
}

/// Mean and standard deviation (of a sample, 0 for one).
fn mean_sd(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// The figures of one score, run by run.
fn figures_at(runs: &[Scores], at: usize) -> Vec<f64> {
    runs.iter().map(|run| run.figures[at].1).collect()
}

/// Bars of all scores where each variant ran once; else a picture for each score, with a dot for each run.
fn pictures(all: &[(String, Vec<Scores>)], names: &[String], num_runs: usize) -> Result<Vec<Block>, ReportError> {
    let variants: Vec<String> = all.iter().map(|(variant, _)| variant.clone()).collect();
    let figure = |png, alternative: String| Block::Figure(Figure { png, caption: String::new(), alternative });
    if num_runs == 1 {
        let values = |at: usize| all.iter().map(|(_, runs)| figures_at(runs, at).first().copied()).collect();
        let series: Vec<Series> =
            names.iter().enumerate().map(|(at, name)| Series { name: name.clone(), values: values(at) }).collect();
        let png = bar_comparison("Scores by variant", &variants, &series)?;
        return Ok(vec![figure(png, "A bar for each score of each variant, as in the table.".into())]);
    }
    let picture = |(at, name): (usize, &String)| {
        let runs: Vec<Vec<f64>> = all.iter().map(|(_, runs)| figures_at(runs, at)).collect();
        Ok(figure(run_scores(name, &variants, &runs)?, format!("{name}: a dot for each run, a bar at the mean.")))
    };
    names.iter().enumerate().map(picture).collect()
}

/// The table on the terminal, and with its pictures as a page.
fn finish(title: &str, all: &[(String, Vec<Scores>)], out: &Path, context: &Context) -> Result<()> {
    let figures = |run: &Scores| run.figures.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    // Every run measures the same, in the same order.
    let names = all.iter().flat_map(|(_, runs)| runs).next().map(figures).unwrap_or_default();
    if let Some(other) = all.iter().flat_map(|(_, runs)| runs).map(figures).find(|other| *other != names) {
        bail!("expected every run to be measured on {names:?}, found one on {other:?}");
    }
    let columns: Vec<String> = std::iter::once("variant".to_owned())
        .chain(names.iter().cloned())
        .chain(["training CPU seconds".into()])
        .collect();
    let mut rows = Vec::new();
    for (variant, runs) in all {
        let mut row = vec![variant.clone()];
        for at in 0..names.len() {
            let (mean, sd) = mean_sd(&figures_at(runs, at));
            row.push(if runs.len() > 1 { format!("{mean:.2} ± {sd:.2}") } else { format!("{mean:.2}") });
        }
        let cpu_secs: Option<Vec<f64>> = runs.iter().map(|run| run.cpu_secs).collect();
        let cpu_secs = cpu_secs.map(|secs| progress::grouped(mean_sd(&secs).0.round() as u64));
        row.push(cpu_secs.unwrap_or_else(|| "–".into()));
        rows.push(row);
    }
    let num_runs = all.iter().map(|(_, runs)| runs.len()).max().unwrap_or(0);
    let mut blocks = vec![Block::Table(Table {
        caption: match num_runs {
            1 => "One run each.".into(),
            n => format!("Means of {n} seeds ± the standard deviation of a sample."),
        },
        columns: columns.clone(),
        rows: rows.iter().map(|row| row.iter().map(Cell::new).collect()).collect(),
        ..Table::default()
    })];
    match pictures(all, &names, num_runs) {
        Ok(pictures) => blocks.extend(pictures),
        Err(error) => context.note(&format!("no picture: {error}")),
    }
    let page = Page {
        title: title.to_owned(),
        sections: vec![Section { heading: "Scores".into(), blocks }],
        ..Page::default()
    };
    for (path, format) in report::outputs(&out.join(""))? {
        report::write(&page, &path, format)?;
        context.note(&format!("report: {}", path.display()));
    }
    Ok(stdout().lock().write_all(aligned(&std::iter::once(columns).chain(rows).collect::<Vec<_>>()).as_bytes())?)
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
