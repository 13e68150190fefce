//! `lapidary eval`: figures of a model on a data file.

pub(crate) mod reconstruct;
mod task_result;
pub(crate) mod tasks;

use crate::args::{EmbedModelArgs, ModelArgs};
use crate::context::Context;
use crate::progress;
use crate::table::aligned;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use lapidary::Lapidary;
use lapidary::data::DataSpec;
use lapidary::data::sts::StsPairs;
use lapidary::data::tasks::load_text;
use lapidary::embed::EmbedOptions;
use lapidary::eval::language::LanguageModel;
use lapidary::eval::sts::{score_sts, unique_texts};
use lapidary::model::GemConfig;
use lapidary::train::first_rows;
use lapidary::train::recipe::BudgetRecipe;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

/// Texts that a standardisation is fitted on.
const STANDARDISATION_TEXTS: usize = 1024;
const EXAMPLES: &str = "\
Examples:
  lapidary eval sts data/STS17/test.jsonl.gz
  lapidary eval sts STSBenchmark/test.jsonl.gz SICK-R/test.jsonl.gz --method mean --standardise-on sentences.txt
  lapidary eval tasks ~/mteb --weights bf16
  lapidary eval tasks ~/mteb --set-of-tasks gem-15 --model smollm2-135m --method echo --standardise-on sentences.txt
  lapidary eval tasks --hub --set-of-tasks gem-15 --weights bf16
  lapidary eval tasks ~/mteb --tasks MMLU LAMBADA --limit 500
  lapidary eval reconstruct data/wiki_sentences.txt.gz --lengths 8,16,32 --report report.html
  lapidary eval perplexity wiki.test.raw.gz --max-tokens 20000";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Semantic textual similarity: Spearman's correlation of cosines with people's scores, times 100
    #[command(after_help = EXAMPLES)]
    Sts(StsArgs),
    /// Embedding and language tasks of a directory in the layout of the mteb data sets, results kept in files
    #[command(after_help = EXAMPLES)]
    Tasks(tasks::TasksArgs),
    /// What the special tokens keep of a text, by its length: exact copies, common tokens, and the loss of what follows,
    /// nats a token, given the special tokens, nothing, or the text
    #[command(after_help = EXAMPLES)]
    Reconstruct(reconstruct::ReconstructArgs),
    /// Perplexity of a text file; of a GEM beside that of its base model
    #[command(after_help = EXAMPLES)]
    Perplexity(PerplexityArgs),
}

#[derive(Debug, Args)]
struct StsArgs {
    /// Files with the columns sentence1, sentence2 and score
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Texts to take mean and deviation of each dimension from, where the model has none
    #[arg(long, value_name = "FILE", num_args = 1..)]
    standardise_on: Vec<String>,
    #[command(flatten)]
    model: EmbedModelArgs,
}

#[derive(Debug, Args)]
struct PerplexityArgs {
    /// A text file, also .gz or .zst
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Tokens the model reads together
    #[arg(long, value_name = "N", default_value_t = 1024)]
    window: usize,
    /// Tokens from one window to the next [default: half a window]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Read the first tokens only; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_tokens: usize,
    #[command(flatten)]
    model: ModelArgs,
}

/// Spearman times 100 of a set, from raw and from standardised vectors; its texts run once.
pub(crate) fn raw_and_standardised(
    model: &Lapidary,
    set: &StsPairs,
    name: &str,
    context: &Context,
) -> Result<(f64, Option<f64>)> {
    let rows = set.pairs.iter().map(|p| (p.sentence1.as_str(), p.sentence2.as_str(), p.score));
    let (texts, pairs) = unique_texts(rows);
    let bar = progress::bar(context, texts.len() as u64, "texts")?;
    bar.set_message(name.to_owned());
    let options = EmbedOptions { standardise: false, normalise: false, ..EmbedOptions::default() };
    let mut vectors = model.embed_with(&texts, &options, &mut |done| bar.set_position(done as u64))?.vectors;
    bar.finish_and_clear();
    let raw = score_sts(&vectors, &pairs)?;
    let Some(standardisation) = model.standardisation() else { return Ok((raw, None)) };
    vectors.iter_mut().try_for_each(|vector| standardisation.apply(vector))?;
    Ok((raw, Some(score_sts(&vectors, &pairs)?)))
}

/// A model to be measured as a language model: plain rows, run with everything that a GEM adds in place.
pub(crate) fn language_model(model: &Lapidary) -> LanguageModel<'_> {
    LanguageModel {
        base: model.base(),
        decoder: &model.base().decoder,
        adapter: model.adapter(),
        adapts_plain_rows: model.method().adapts_plain_rows(),
        anchors: model.method().anchors(),
    }
}

/// Runs the command.
///
/// # Errors
/// When the model or a file is at fault.
pub(crate) fn run(args: &EvalArgs, context: &Context) -> Result<()> {
    let rows = match &args.task {
        Task::Sts(args) => sts(args, context)?,
        Task::Tasks(args) => tasks::run(args, context)?,
        Task::Reconstruct(args) => reconstruct::run(args, context)?,
        Task::Perplexity(args) => perplexities(args, context)?,
    };
    Ok(stdout().lock().write_all(aligned(&rows).as_bytes())?)
}

/// Takes mean and deviation of each dimension from texts, where any are named.
pub(crate) fn standardise(model: &mut Lapidary, paths: &[String], context: &Context) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let spec = DataSpec { paths: paths.to_vec(), ..DataSpec::default() };
    let ids = first_rows(&spec, &model.base().tokenizer, &BudgetRecipe::default(), STANDARDISATION_TEXTS)?;
    let bar = progress::bar(context, ids.len() as u64, "texts to standardise on")?;
    model.standardise_on(&ids, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(())
}

fn sts(args: &StsArgs, context: &Context) -> Result<Vec<Vec<String>>> {
    let sets = args.files.iter().map(|file| Ok(StsPairs::load(file)?)).collect::<Result<Vec<_>>>()?;
    let mut model = context.load_to_embed(&args.model)?;
    standardise(&mut model, &args.standardise_on, context)?;
    let mut rows = vec![["file", "pairs", "raw", "standardised"].map(str::to_owned).to_vec()];
    for (file, set) in args.files.iter().zip(&sets) {
        let name = file.display().to_string();
        let (raw, standardised) = raw_and_standardised(&model, set, &name, context).with_context(|| name.clone())?;
        rows.push(vec![
            file.display().to_string(),
            progress::grouped(set.pairs.len() as u64),
            format!("{raw:.2}"),
            standardised.map_or("-".to_owned(), |value| format!("{value:.2}")),
        ]);
    }
    Ok(rows)
}

fn perplexities(args: &PerplexityArgs, context: &Context) -> Result<Vec<Vec<String>>> {
    let text = load_text(&args.file)?;
    let model = context.load_model(&args.model)?;
    let mut ids = model.base().tokenizer.encode_long(&text).with_context(|| args.file.display().to_string())?;
    if args.max_tokens > 0 {
        ids.truncate(args.max_tokens);
    }
    let longest = model.base().decoder.config().max_position_embeddings;
    if args.window > longest {
        bail!("--window: expected at most the model's {longest} tokens, found {}", args.window);
    }
    let stride = args.stride.unwrap_or(args.window.div_ceil(2));
    let measure = |measured: LanguageModel<'_>, name: &'static str| -> Result<Vec<String>> {
        let bar = progress::bar(context, ids.len() as u64, "tokens")?;
        bar.set_message(name);
        let found = measured.perplexity(&ids, (args.window, stride), &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        Ok(vec![name.to_owned(), progress::grouped(ids.len() as u64), format!("{found:.4}")])
    };
    let mut rows = vec![["model", "tokens", "perplexity"].map(str::to_owned).to_vec()];
    rows.push(measure(language_model(&model), "this model")?);
    let name = args.model.name();
    let dir = Path::new(&name);
    if GemConfig::is_gem(dir) {
        let base_name = args.model.base.clone().map_or_else(|| Ok(GemConfig::load(dir)?.base_model), anyhow::Ok)?;
        drop(model);
        let mut base = context.load_base(&context.files(&base_name)?)?;
        base.decoder.set_weight_format(args.model.weights().into())?;
        rows.push(measure(LanguageModel::of_base(&base), "its base model")?);
    }
    Ok(rows)
}
