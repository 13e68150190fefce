//! `lapidary quickstart`: cut the default model into a GEM and show what it gained and that it lost nothing.

mod checks;
mod measure;
mod page;

use crate::args::shipped;
use crate::commands::train_watch::Watch;
use crate::context::{Context, dated, today};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use lapidary::data::sts::StsPairs;
use lapidary::report::curves::LossPoint;
use lapidary::train::{Recipe, RunOptions, State, Trainer, first_rows};
use lapidary::{Lapidary, ModelFiles};
use measure::{MethodScore, Samples};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The recipe, compiled in so that the program needs no file of ours but the data.
const RECIPE: &str = include_str!("../../../../recipes/quickstart.toml");
/// Where the hub has STSBenchmark: data set and file.
const HUB_STS_BENCHMARK: (&str, &str) = ("mteb/stsbenchmark-sts", "test.jsonl.gz");
/// Methods that need no training, and the untrained GEM.
const UNTRAINED: [&str; 6] = ["mean", "weighted-mean", "last", "echo", "prompt-eol", "gem"];
/// Rows learned from in a second on two cores with AMX, for `--minutes`, as the quickstart itself measured; a first
/// guess on other machines, where the bar shows the true time left.
const ROWS_PER_SECOND: f64 = 12.5;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapidary quickstart
  lapidary quickstart --minutes 3 --out /tmp/first-gem
  lapidary quickstart --rows 4096 --out runs/4096 --data ~/mteb      # with STSBenchmark/test.jsonl.gz in ~/mteb")]
pub(crate) struct QuickstartArgs {
    /// Rows of training text to learn from
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    rows: Option<u64>,
    /// About how long to train, minutes
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Where the GEM, its plots and report.html go
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    out: PathBuf,
    /// A directory of MTEB tasks, whose STSBenchmark is measured too
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Measure STSBenchmark too, fetched from the hub (its licence keeps it out of the repository)
    #[arg(long, conflicts_with = "data")]
    hub_data: bool,
    /// The repository's sample data [default: data/ here or above the program]
    #[arg(long, value_name = "DIR", hide = true)]
    sample: Option<PathBuf>,
    /// The base model
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    model: String,
}

/// All that the report tells.
struct Findings {
    methods: Vec<MethodScore>,
    /// Name, base, GEM.
    knowledge: Vec<(String, f64, f64)>,
    banking: Option<(f64, f64)>,
    checks: Vec<checks::Check>,
    losses: Vec<LossPoint>,
    reply: (String, String),
    sentences: Vec<String>,
    vectors: Vec<Vec<f32>>,
    rows: u64,
    train_secs: f64,
}

pub(crate) fn run(args: &QuickstartArgs, context: &Context) -> Result<()> {
    let started = Instant::now();
    let sample = sample_dir(args)?;
    let files = context.files(&args.model)?;
    let benchmark = sts_benchmark(args, context)?;
    let samples = Samples::load(&sample, benchmark)?;
    let rows = match (args.rows, args.minutes) {
        (Some(rows), _) => Some(rows),
        (None, Some(minutes)) if minutes > 0.0 => Some(((minutes * 60.0 * ROWS_PER_SECOND) as u64).max(128)),
        (None, Some(minutes)) => bail!("--minutes {minutes}: expected a number above 0"),
        (None, None) => None,
    };
    let mut overrides = vec![
        format!("model={}", toml_text(&args.model)),
        format!("data.paths=[{}]", toml_text(&samples.training.display().to_string())),
    ];
    overrides.extend(rows.map(|rows| format!("budget.rows={rows}")));
    let recipe = Recipe::parse(RECIPE, &overrides)?;
    context.note(&format!(
        "Cutting {} into a GEM: {} rows of Wikipedia, {}",
        args.model,
        recipe.budget.rows,
        args.out.display()
    ));

    let rows = recipe.steps() * recipe.budget.batch_rows as u64;
    let mut base = context.load_base(&files)?;
    let fit = first_rows(&recipe.data, &base.tokenizer, &recipe.budget, measure::STANDARDISATION_ROWS)?;
    let options =
        RunOptions { out: args.out.clone(), checkpoint_every_steps: 8, keep_checkpoints: 2, stop_after_steps: 0 };
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    // An earlier run in the way is told before minutes of measuring, not after them.
    let settings = Value::Object(recipe.method.settings.clone());
    let mut trainer = Trainer::new(recipe, &mut base, options)?;
    let (methods, base_banking) = untrained(&files, settings, &samples, &fit, context)?;
    let (model, state, losses) = train(&mut trainer, &args.out, context)?;
    drop(trainer);
    // One day for both models: the checks compare what their templates write.
    let today = today();
    let gem = context.place(dated(Lapidary::load(&model, &files)?, today))?;
    let (gem, score) = measure::method(gem, "GEM, trained", &samples, &fit, context)?;
    let banking = measure::banking(&gem, &samples, "GEM", context)?;
    let base = Lapidary::untrained(&files, gem.method().name(), gem.method().settings())?;
    let base = context.place(dated(base, today))?;
    let mut findings = examine(&gem, &base, &samples, &fit, context)?;
    findings.methods = methods.into_iter().chain([score]).collect();
    findings.banking = Some((base_banking, banking));
    findings.rows = rows;
    findings.train_secs = state.train_secs;
    findings.losses = losses;
    let secs = started.elapsed().as_secs_f64();
    page::print(&findings, secs);
    page::write(&findings, &args.out, secs)?;
    println!("\nThe GEM:    {}", model.display());
    println!("The report: {}", args.out.join("report.html").display());
    println!(
        "Try:        lapidary similarity --model {} \"A man plays a guitar.\" \"Someone makes music.\"",
        model.display()
    );
    if findings.checks.iter().any(|check| !check.passed) {
        bail!("a check failed: see the report");
    }
    Ok(())
}

fn toml_text(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// `data/` of the repository: below the current directory or above the program.
fn sample_dir(args: &QuickstartArgs) -> Result<PathBuf> {
    if let Some(dir) = &args.sample {
        return Ok(dir.clone());
    }
    shipped("data", |dir| dir.join(measure::TRAINING_FILE).is_file()).context(
        "the sample data were not found: run this in the repository, or name its data directory with --sample DIR",
    )
}

/// Scores of the methods without training, and the accuracy of the best of them on Banking77.
fn untrained(
    files: &ModelFiles,
    gem_settings: Value,
    samples: &Samples,
    fit: &[Vec<u32>],
    context: &Context,
) -> Result<(Vec<MethodScore>, f64)> {
    let mut scores: Vec<MethodScore> = Vec::new();
    let mut base = Some(context.load_base(files)?);
    for method in UNTRAINED {
        // The rows that will be trained, as they start.
        let (name, settings) =
            if method == "gem" { ("GEM, untrained", gem_settings.clone()) } else { (method, Value::Null) };
        let loaded = base.take().context("the base model is handed from method to method")?;
        let model = Lapidary::from_base(loaded, method, settings)?;
        let (model, score) = measure::method(model, name, samples, fit, context)?;
        base = Some(model.into_base());
        scores.push(score);
    }
    let loaded = base.take().context("the base model is handed from method to method")?;
    let mut model = Lapidary::from_base(loaded, "prompt-eol", Value::Null)?;
    model.standardise_on(fit, &mut |_| {})?;
    let banking = measure::banking(&model, samples, "prompt-eol", context)?;
    Ok((scores, banking))
}

/// Trains, with a bar; Ctrl-C checkpoints, and the same command goes on from there. Returns the model's directory, the
/// state at the end, and the losses of the whole run, earlier calls included.
fn train(trainer: &mut Trainer<'_>, out: &Path, context: &Context) -> Result<(PathBuf, State, Vec<LossPoint>)> {
    let stop = crate::interrupt::stop_flag("writing a checkpoint; the same command goes on from there")?;
    context.note(&format!("Training {} numbers", crate::progress::grouped(trainer.num_trained() as u64)));
    let mut watch = Watch::new(context, out, trainer.steps())?;
    let outcome = trainer.run(&stop, &mut |event| watch.on(&event))?;
    watch.finish();
    match outcome.model {
        Some(model) => {
            watch.leave_records(&model, &outcome.state)?;
            Ok((model, outcome.state, watch.losses()?))
        }
        None => {
            let text = format!("interrupted after step {}; the same command goes on from there", outcome.state.step);
            Err(crate::failure::Interrupted(text).into())
        }
    }
}

/// Everything that is measured of the trained model beside its embeddings.
fn examine(
    gem: &Lapidary,
    base: &Lapidary,
    samples: &Samples,
    fit: &[Vec<u32>],
    context: &Context,
) -> Result<Findings> {
    let knowledge = measure::knowledge(base, gem, samples, context)?;
    let checks = checks::run(base, gem, &fit[..fit.len().min(8)], &knowledge, context)?;
    let sentences = page::EXAMPLES.map(str::to_owned).to_vec();
    let vectors = gem.embed(&sentences)?;
    let reply = checks::reply(gem)?;
    Ok(Findings {
        methods: Vec::new(),
        knowledge,
        banking: None,
        checks,
        losses: Vec::new(),
        reply,
        sentences,
        vectors,
        rows: 0,
        train_secs: 0.0,
    })
}

/// STSBenchmark's test pairs, where the user names a place that has them.
fn sts_benchmark(args: &QuickstartArgs, context: &Context) -> Result<Option<StsPairs>> {
    if args.hub_data {
        return Ok(Some(StsPairs::load(&context.data_set_file(HUB_STS_BENCHMARK.0, HUB_STS_BENCHMARK.1)?)?));
    }
    let Some(dir) = args.data.as_ref().map(|dir| dir.join("STSBenchmark")) else { return Ok(None) };
    if !dir.is_dir() {
        bail!("--data: expected {} to be a directory, found none", dir.display());
    }
    Ok(Some(StsPairs::load_split(&dir, "test")?))
}
