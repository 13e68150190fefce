//! `lapidary eval tasks`: a model on a directory of tasks, each result kept in a file of its own.

use super::task_result::{Row, result, row_of};
use super::{language_model, standardise};
use crate::args::EmbedModelArgs;
use crate::commands::train_watch::training_cost;
use crate::context::Context;
use crate::failure::Interrupted;
use crate::interrupt::StopFlag;
use crate::progress;
use crate::table::aligned;
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use lapidary::Lapidary;
use lapidary::embed::EmbedOptions;
use lapidary::eval::task::embedding::{Side, score_embedding_task};
use lapidary::eval::task::language::{LanguageOptions, score_language_task};
use lapidary::eval::task::{TaskKind, TaskScore, data_fingerprint, local_tasks};
use lapidary::eval::task_instructions::{INSTRUCTIONS, instruction};
use lapidary::eval::task_sets::{GEM_15, MTEB_ENG_V2};
use lapidary::output::atomic::write_file;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Raised when a protocol changes here, so that no score made by the old one is found again.
const PROTOCOLS: u32 = 3;

#[derive(Debug, Args)]
pub(super) struct TasksArgs {
    /// A directory with one directory a task, as the Hugging Face data sets `mteb/*` have their files
    #[arg(value_name = "DIR", required_unless_present = "hub")]
    data: Option<PathBuf>,
    /// Fetch what DIR lacks of the tasks: the data sets mteb/* of the hub, at the revisions of the mteb package, and those
    /// of MMLU, ARC, HellaSwag, LAMBADA and WikiText2. A report marks results of fetched and of local files as of
    /// different data
    #[arg(long)]
    hub: bool,
    /// Which tasks: all that the directory holds, or those of a published set
    #[arg(long = "set-of-tasks", value_name = "SET", default_value = "local", conflicts_with = "tasks")]
    set: TaskSet,
    /// These tasks alone, by name
    #[arg(long, value_name = "TASK", num_args = 1..)]
    tasks: Vec<String>,
    /// Where results go and are found again: RESULTS/MODEL/REVISION/TASK.json
    #[arg(long, value_name = "DIR", default_value = "results")]
    results: PathBuf,
    /// What the model is called in them [default: the name of its file or directory, and the method]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Longer texts are cut to this many tokens, and counted
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Questions or texts of a language task, spread over the set; of a raw text, thousands of tokens; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: usize,
    /// Put LLM2Vec's instruction of each task before its texts, of retrieval and reranking before the queries alone: as
    /// `INSTRUCTION: TEXT`, or in the method's own format. Means over the text leave the instruction out; a last token
    /// or [E]s have read it. Tasks without an instruction are scored without
    #[arg(long)]
    instructions: bool,
    /// Vectors as pooled, without standardisation
    #[arg(long)]
    no_standardise: bool,
    /// Texts to take mean and deviation of each dimension from, where the model has none
    #[arg(long, value_name = "FILE", num_args = 1..)]
    standardise_on: Vec<String>,
    #[command(flatten)]
    model: EmbedModelArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TaskSet {
    /// All tasks of the directory
    Local,
    /// The 15 tasks of GEM and LLM2Vec (MTEB version 1)
    #[value(name = "gem-15")]
    Gem15,
    /// MTEB(eng, v2): 41 tasks
    #[value(name = "mteb-eng-v2")]
    MtebEngV2,
}

/// A task with its data.
struct Task {
    name: String,
    kind: TaskKind,
    dir: PathBuf,
    /// Commit of the data set, where it is known.
    revision: String,
}

pub(super) fn run(args: &TasksArgs, context: &Context) -> Result<Vec<Vec<String>>> {
    let named: Vec<String> = match (args.tasks.as_slice(), args.set) {
        ([], TaskSet::Local) => Vec::new(),
        ([], TaskSet::Gem15) => GEM_15.map(str::to_owned).to_vec(),
        ([], TaskSet::MtebEngV2) => MTEB_ENG_V2.map(str::to_owned).to_vec(),
        (tasks, _) => tasks.to_vec(),
    };
    let mut failed = Vec::new();
    let tasks = find_tasks(args, &named, context, &mut failed)?;
    let wanted = if named.is_empty() { tasks.iter().map(|task| task.name.clone()).collect() } else { named };
    let missing: Vec<&String> = wanted.iter().filter(|name| tasks.iter().all(|task| task.name != **name)).collect();
    let place = args.data.as_ref().map_or("the hub".to_owned(), |dir| dir.display().to_string());
    if !args.hub && !args.tasks.is_empty() && !missing.is_empty() {
        bail!("{place}: no task {}", list(&missing));
    }
    if tasks.is_empty() {
        let why = if failed.is_empty() { String::new() } else { format!(" ({})", failed.join("; ")) };
        bail!("{place}: expected a directory for each task, found none of {}{why}", list(&missing));
    }
    let mut model = context.load_to_embed(&args.model)?;
    standardise(&mut model, &args.standardise_on, context)?;
    let out = results_dir(args, &model);
    let (rows, unmeasured) = measure(args, &model, &tasks, &out, context)?;
    failed.extend(unmeasured);
    if !missing.is_empty() && !args.hub {
        context.note(&format!("not in {place}: {}", list(&missing)));
    }
    context.note(&format!("results: {}", out.display()));
    let num_language = tasks.iter().filter(|task| !task.kind.is_embedding()).count();
    if failed.is_empty() {
        return Ok(table(&rows, wanted.len(), num_language));
    }
    stdout().lock().write_all(aligned(&table(&rows, wanted.len(), num_language)).as_bytes())?;
    bail!("{} of {} tasks failed: {}", failed.len(), rows.len() + failed.len(), failed.join("; "))
}

/// Results of tasks, and what kept the others from having one.
fn measure(
    args: &TasksArgs,
    model: &Lapidary,
    tasks: &[Task],
    out: &Path,
    context: &Context,
) -> Result<(Vec<Row>, Vec<String>)> {
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    write_model_meta(args, model, out)?;
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for one in tasks {
        // One task that cannot be read does not keep the others from being measured.
        match task(args, model, one, out, context) {
            Ok(row) => rows.push(row),
            Err(error) => failed.push(format!("{}: {error:#}", one.name)),
        }
    }
    Ok((rows, failed))
}

/// How tasks are measured where no command line says it.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TaskOptions {
    /// These tasks alone; none: all of the directory.
    names: Vec<String>,
    /// Longer texts are cut to this many tokens.
    max_tokens: usize,
    /// Questions or texts of language tasks by name, of a raw text thousands of tokens; of others all.
    limits: BTreeMap<String, usize>,
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self { names: Vec::new(), max_tokens: 512, limits: BTreeMap::new() }
    }
}

impl TaskOptions {
    /// Whether the directory has the tasks.
    ///
    /// # Errors
    /// Naming the first that it lacks.
    pub(crate) fn check(&self, data: &Path) -> Result<()> {
        let found = local_tasks(data, &self.names)?;
        match self.names.iter().find(|name| found.iter().all(|(found, _)| found != *name)) {
            Some(missing) => bail!("{}: no task {missing}", data.display()),
            None if found.is_empty() => bail!("{}: expected a directory for each task, found none", data.display()),
            None => Ok(()),
        }
    }
}

/// Main scores of the tasks of a directory by name, behind the mean of those that embed; results are kept under, and
/// found again in, `results`.
///
/// # Errors
/// When the directory lacks a task, or one cannot be measured; [`Interrupted`] where the user asked to stop before one.
pub(crate) fn measure_tasks(
    (model, loaded_as): (&Lapidary, &EmbedModelArgs),
    (data, results, called): (&Path, &Path, &str),
    options: &TaskOptions,
    stop: &StopFlag,
    context: &Context,
) -> Result<Vec<(String, f64)>> {
    let mut args = TasksArgs {
        data: Some(data.into()),
        hub: false,
        set: TaskSet::Local,
        tasks: options.names.clone(),
        results: results.into(),
        name: Some(called.to_owned()),
        max_tokens: options.max_tokens,
        limit: 0,
        instructions: false,
        no_standardise: false,
        standardise_on: Vec::new(),
        model: loaded_as.clone(),
    };
    let mut failed = Vec::new();
    let tasks = find_tasks(&args, &options.names, context, &mut failed)?;
    let out = results_dir(&args, model);
    let mut rows = Vec::new();
    for task in &tasks {
        if stop.load(Ordering::Relaxed) {
            bail!(Interrupted(format!("stopped before {} of {called}", task.name)));
        }
        args.limit = options.limits.get(&task.name).copied().unwrap_or(0);
        let (measured, unmeasured) = measure(&args, model, std::slice::from_ref(task), &out, context)?;
        rows.extend(measured);
        failed.extend(unmeasured);
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    let embedding: Vec<f64> = rows.iter().filter(|row| row.kind.is_embedding()).map(|row| row.value).collect();
    let mean = embedding.iter().sum::<f64>() / embedding.len() as f64;
    let mean = (embedding.len() > 1).then(|| (format!("mean of {} embedding tasks", embedding.len()), mean));
    Ok(mean.into_iter().chain(rows.into_iter().map(|row| (row.name, row.value))).collect())
}

/// The tasks of the directory, and with `--hub` those that it lacks; what cannot be fetched is told in `failed`.
fn find_tasks(args: &TasksArgs, named: &[String], context: &Context, failed: &mut Vec<String>) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    if let Some(dir) = &args.data {
        for (name, kind) in local_tasks(dir, named)? {
            tasks.push(Task { dir: dir.join(&name), name, kind, revision: "local".into() });
        }
    }
    if !args.hub {
        return Ok(tasks);
    }
    if named.is_empty() {
        bail!("--hub: expected --tasks or --set-of-tasks to say which");
    }
    let lacking: Vec<&String> = named.iter().filter(|name| tasks.iter().all(|task| task.name != **name)).collect();
    for name in lacking {
        let fetched = context.task_data(name).and_then(|data| {
            let kind =
                TaskKind::of(&data.dir)?.with_context(|| format!("{}: no known kind of task", data.dir.display()))?;
            Ok(Task { name: name.clone(), kind, dir: data.dir, revision: data.revision })
        });
        match fetched {
            Ok(task) => tasks.push(task),
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    tasks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tasks)
}

fn list(names: &[&String]) -> String {
    names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Scores with one decimal less than a person can use, and the mean of the embedding tasks, with their number.
fn table(rows: &[Row], num_wanted: usize, num_language: usize) -> Vec<Vec<String>> {
    let mut table = vec![["task", "metric", "score", ""].map(str::to_owned).to_vec()];
    for row in rows {
        table.push(vec![row.name.clone(), row.metric.clone(), format!("{:.2}", row.value), row.note.clone()]);
    }
    let embedding: Vec<f64> = rows.iter().filter(|row| row.kind.is_embedding()).map(|row| row.value).collect();
    if embedding.len() > 1 {
        let of = format!("mean of {} of {} embedding tasks", embedding.len(), num_wanted - num_language);
        let mean = embedding.iter().sum::<f64>() / embedding.len() as f64;
        table.push(vec![of, String::new(), format!("{mean:.2}"), String::new()]);
    }
    table
}

/// RESULTS/MODEL/REVISION: the revision changes with everything that changes a score but the task.
fn results_dir(args: &TasksArgs, model: &Lapidary) -> PathBuf {
    let name = args.name.clone().unwrap_or_else(|| {
        let path = args.model.model.name();
        let file = Path::new(&path).file_name().map_or(path.clone(), |name| name.to_string_lossy().into_owned());
        format!("lapidary/{file}-{}", model.method().name())
    });
    let standardised = model.standardisation().filter(|_| !args.no_standardise);
    let numbers =
        standardised.map(|s| s.mean().iter().chain(s.std()).flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    let described = format!("{} {} {} {PROTOCOLS}", model.fingerprint(), args.max_tokens, numbers.is_some());
    let instructions = if args.instructions { format!("{INSTRUCTIONS:?}") } else { String::new() };
    let mut revision =
        lapidary::fingerprint_of(&[described.as_bytes(), &numbers.unwrap_or_default(), instructions.as_bytes()]);
    revision.truncate(16);
    args.results.join(name.replace('/', "__")).join(revision)
}

fn write_model_meta(args: &TasksArgs, model: &Lapidary, out: &Path) -> Result<()> {
    let dir_name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut meta = json!({
        "name": out.parent().map(dir_name).unwrap_or_default().replace("__", "/"),
        "revision": dir_name(out),
        "framework": ["lapidary"],
        "similarity_fn_name": "cosine",
        "embed_dim": model.base().decoder.config().hidden_size,
        "max_tokens": args.max_tokens,
        "method": model.method().name(),
        "method_settings": model.method().settings(),
        "instructions": args.instructions,
        "standardised": model.standardisation().is_some() && !args.no_standardise,
        "fingerprint": model.fingerprint(),
    });
    if let Some(cost) = training_cost(Path::new(&args.model.model.name())) {
        meta["training"] = cost;
    }
    write_json(&out.join("model_meta.json"), &meta)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    Ok(write_file(path, |file| file.write_all(text.as_bytes()))?)
}

/// The result of a task: from its file, or measured and written there.
fn task(args: &TasksArgs, model: &Lapidary, task: &Task, out: &Path, context: &Context) -> Result<Row> {
    let Task { name, kind, dir, revision } = task;
    let kind = *kind;
    let limit = if kind.is_embedding() { 0 } else { args.limit };
    let file = if limit == 0 { out.join(format!("{name}.json")) } else { out.join(format!("{name}.{limit}.json")) };
    let data = data_fingerprint(dir)?;
    if file.is_file() {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let stored: Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        if stored.get("data_fingerprint").and_then(Value::as_str) != Some(&data) {
            bail!("{}: measured on other data than {}; another --results keeps both", file.display(), dir.display());
        }
        return row_of(name, kind, &stored).with_context(|| format!("{}: not a result", file.display()));
    }
    let started = Instant::now();
    let (score, num_truncated) = if kind.is_embedding() {
        embedding_score(args, model, (name, kind), dir, context)?
    } else {
        let bar = progress::bar(context, 0, "done")?;
        bar.set_message(name.clone());
        let options = LanguageOptions { limit, max_tokens: limit.saturating_mul(1000), ..LanguageOptions::default() };
        let score = score_language_task(dir, kind, &language_model(model), &options, &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        (score, 0)
    };
    let mut result = result(name, kind, &score, (num_truncated, started.elapsed().as_secs_f64()), limit)?;
    result["data_fingerprint"] = json!(data);
    result["dataset_revision"] = json!(revision);
    if kind.is_embedding() {
        result["instruction"] = json!(instruction_of(args, name));
    }
    write_json(&file, &result)?;
    let row = row_of(name, kind, &result).context("a result that was just made")?;
    context.note(&format!("{name}: {} {:.2}", row.metric, row.value));
    Ok(row)
}

fn embedding_score(
    args: &TasksArgs,
    model: &Lapidary,
    (name, kind): (&String, TaskKind),
    dir: &Path,
    context: &Context,
) -> Result<(TaskScore, usize)> {
    // MTEB takes an encoder's vectors as they are. Cosines do not feel their length; the penalty of the regression that
    // classifies does, and starves on vectors of length one.
    let options = EmbedOptions {
        max_tokens: args.max_tokens,
        standardise: !args.no_standardise,
        normalise: false,
        ..EmbedOptions::default()
    };
    let instruction = instruction_of(args, name);
    let mut num_truncated = 0;
    let mut embed = |texts: &[&str], side: Side| {
        // Some sets hold empty texts; a blank one has a vector, like any other.
        let texts: Vec<&str> = texts.iter().map(|text| if text.trim().is_empty() { "." } else { *text }).collect();
        let bar = progress::bar(context, texts.len() as u64, "texts")
            .map_err(|error| lapidary::Error::Internal(error.to_string()))?;
        bar.set_message(name.clone());
        let mut progress = |done| bar.set_position(done as u64);
        let embeddings = match instruction.filter(|_| side == Side::Query) {
            Some(instruction) => model.embed_instructed(instruction, &texts, &options, &mut progress)?,
            None => model.embed_with(&texts, &options, &mut progress)?,
        };
        bar.finish_and_clear();
        num_truncated += embeddings.num_truncated;
        Ok(embeddings.vectors)
    };
    let score = score_embedding_task(dir, name, kind, &mut embed)?;
    Ok((score, num_truncated))
}

fn instruction_of(args: &TasksArgs, name: &str) -> Option<&'static str> {
    args.instructions.then(|| instruction(name)).flatten()
}
