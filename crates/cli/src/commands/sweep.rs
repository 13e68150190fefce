//! `lapidary sweep`: variants of a recipe, each with several seeds, trained and measured one after the other.

mod page;

use super::eval::reconstruct::{ReconstructOptions, Retention, measure_retention};
use super::eval::tasks::{TaskOptions, measure_tasks};
use super::eval::{raw_and_standardised, standardise};
use super::train;
use super::train_watch::training_cost;
use crate::args::EmbedModelArgs;
use crate::context::Context;
use crate::failure::Interrupted;
use crate::interrupt;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use lapidary::Lapidary;
use lapidary::data::DataSpec;
use lapidary::data::sts::StsPairs;
use lapidary::layout;
use lapidary::model::WeightFormat;
use lapidary::output::atomic::write_file;
use lapidary::train::{Recipe, RunOptions};
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

const EXAMPLES: &str = "\
Examples:
  lapidary sweep sweeps/num_special_tokens.toml
  lapidary sweep sweeps/num_special_tokens.toml --set budget.rows=512 --out /tmp/sweep
  lapidary sweep sweeps/methods.toml --tasks ~/mteb --sts ~/mteb/STSBenchmark/validation.jsonl.gz
  lapidary sweep sweeps/reconstruction.toml --reconstruct paragraphs.jsonl.gz

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
    /// Measure what the special tokens keep of the texts of these files too, as `eval reconstruct` does
    #[arg(long, value_name = "FILE", num_args = 1..)]
    reconstruct: Vec<String>,
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
    /// How the texts of `--reconstruct` are measured.
    #[serde(default)]
    reconstruct: ReconstructOptions,
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
    /// What the special tokens keep, by length; the hash of what it was measured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retention: Option<(String, Vec<Retention>)>,
}

/// What to measure, and with what.
struct Measures<'a> {
    sts: Vec<(String, StsPairs)>,
    tasks: Option<&'a Path>,
    options: &'a TaskOptions,
    /// Texts to measure retention on, with a hash of them and of how.
    texts: Option<(DataSpec, String)>,
    reconstruct: &'a ReconstructOptions,
    standardise_on: &'a [String],
    weights: WeightFormat,
    results: PathBuf,
}

impl Sweep {
    /// The runs of a variant, checked: one for each seed, or the model as it is.
    fn plan(&self, variant: &Variant, more: &[String]) -> Result<Vec<Run>> {
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
        let recipe = variant.recipe.as_ref().or(self.recipe.as_ref()).context("no recipe, and no model or method")?;
        let text = std::fs::read_to_string(recipe).with_context(|| recipe.display().to_string())?;
        let changes = || self.set.iter().chain(more).chain(&variant.set).cloned();
        let run = |seed: &u64| Run::Recipe(text.clone(), changes().chain([format!("seed={seed}")]).collect());
        let runs: Vec<Run> = self.seeds.iter().map(run).collect();
        runs.iter().try_for_each(Run::check)?;
        Ok(runs)
    }
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
    if sweep.variants.is_empty()
        || sweep.seeds.is_empty()
        || (sts.is_empty() && args.tasks.is_none() && args.reconstruct.is_empty())
    {
        bail!("{path}: expected at least one of variants, of seeds, and of sts, --tasks or --reconstruct");
    }
    let named = || Path::new("runs").join(args.sweep.file_stem().unwrap_or("sweep".as_ref()));
    let out = args.out.clone().unwrap_or_else(named);
    let measures = Measures {
        sts: sts.into_iter().map(|file| Ok((task_name(file), StsPairs::load(file)?))).collect::<Result<_>>()?,
        tasks: args.tasks.as_deref(),
        options: &sweep.tasks,
        texts: texts(&args.reconstruct, &sweep.reconstruct)?,
        reconstruct: &sweep.reconstruct,
        standardise_on: &sweep.standardise_on,
        weights: sweep.weights,
        results: out.join("results"),
    };
    // A mistake in what is measured, or in the last variant, is told before the first is trained.
    if let Some(tasks) = &args.tasks {
        sweep.tasks.check(tasks)?;
    }
    sweep.reconstruct.check().with_context(|| format!("{path}: reconstruct"))?;
    if let Some(missing) = sweep.standardise_on.iter().find(|file| !Path::new(file).is_file()) {
        bail!("{path}: standardise_on: no file {missing}");
    }
    let plans: Vec<Vec<Run>> = (sweep.variants.iter())
        .map(|variant| sweep.plan(variant, &args.set).with_context(|| format!("{path}: {}", variant.name)))
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
            if stop.load(Ordering::Relaxed) {
                bail!(Interrupted(format!("stopped before {called}")));
            }
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
    page::finish(&title, &all, &out, context)?;
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

/// The texts of these files, with a hash of them and of how they are measured; none where there are no files.
fn texts(files: &[String], options: &ReconstructOptions) -> Result<Option<(DataSpec, String)>> {
    if files.is_empty() {
        return Ok(None);
    }
    let spec = DataSpec { paths: files.to_vec(), ..DataSpec::default() };
    let mut parts = vec![format!("{options:?}").into_bytes()];
    for file in lapidary::data::open(&spec)?.files() {
        parts.push(std::fs::read(file).with_context(|| file.display().to_string())?);
    }
    Ok(Some((spec, lapidary::fingerprint_of(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()))))
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
            (context.place(Lapidary::load(&gem, &files)?)?, args)
        }
        Run::Model(args) => (context.load_to_embed(args)?, args.as_ref().clone()),
    };
    model.set_weight_format(measures.weights)?;
    let fingerprint = model.fingerprint().into_owned();
    let kept = kept.filter(|kept| kept.fingerprint == fingerprint);
    if let Some(kept) = kept.as_ref().filter(|kept| measures.are_in(kept)) {
        return Ok(kept.clone());
    }
    if model.standardisation().is_none() {
        standardise(&mut model, measures.standardise_on, context)?;
    }
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let cost = training_cost(Path::new(&loaded_as.model.name()));
    let cpu_secs = cost.and_then(|cost| cost["cpu_secs"].as_f64());
    let measured = measures.described()?;
    let mut scores = Scores { set, recipe, measured, fingerprint, cpu_secs, figures: Vec::new(), retention: None };
    for (name, set) in &measures.sts {
        let (raw, standardised) = raw_and_standardised(&model, set, name, context)?;
        scores.figures.push((name.clone(), standardised.unwrap_or(raw)));
    }
    if let Some(tasks) = measures.tasks {
        scores.figures.extend(measure_tasks(
            (&model, &loaded_as),
            (tasks, &measures.results, called),
            measures.options,
            stop,
            context,
        )?);
    }
    scores.retention = kept.and_then(|kept| kept.retention);
    if let Some((texts, described)) = &measures.texts
        && scores.retention.as_ref().is_none_or(|(known, _)| known != described)
    {
        // A method without special tokens has its other scores all the same.
        let found = measure_retention(&model, texts, measures.reconstruct, context);
        let found = found.map_err(|error| context.note(&format!("{called}: no reconstruction: {error:#}")));
        scores.retention = Some((described.clone(), found.unwrap_or_default()));
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
        let texts = scores.retention.as_ref().map(|(described, _)| described);
        self.tasks.is_none()
            && self.sts.iter().map(|(name, _)| name).eq(scores.figures.iter().map(|(name, _)| name))
            && self.texts.as_ref().is_none_or(|(_, described)| texts == Some(described))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_and_variants() {
        assert_eq!(task_name(Path::new("x/STSBenchmark/validation.jsonl.gz")), "STSBenchmark validation");
        assert_eq!(task_name(Path::new("pairs.csv")), "pairs");
        assert_eq!(directory_name("k = 1, α"), "k-=-1---");
    }
}
