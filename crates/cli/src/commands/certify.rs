//! `lapidary certify`: what a GEM has cost its base model, on one page.

mod page;

use crate::args::{ModelArgs, Weights, shipped};
use crate::commands::eval::language_model;
use crate::context::Context;
use crate::failure::Refused;
use crate::progress;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use lapidary::Lapidary;
use lapidary::data::tasks::{load_multiple_choice, load_texts, split_file};
use lapidary::eval::damage::{Drift, drift};
use lapidary::eval::language::LanguageModel;
use lapidary::eval::task::language::{LanguageOptions, score_language_task, spread};
use lapidary::eval::task::{TaskKind, local_tasks};
use lapidary::generate::GenerateOptions;
use lapidary::layout::TokenId;
use lapidary::model::GemConfig;
use lapidary::output::atomic::write_file;
use std::io::{Write as _, stdout};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Tokens of a greedy reply.
const REPLY_TOKENS: usize = 48;
/// Tokens of a raw text that stand for one question of the limit.
const TOKENS_OF_A_TEXT: usize = 100;
/// Chats where there is neither a file nor MMLU, whose questions are the chats else.
const QUESTIONS: [&str; 4] = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
    "Give me three tips for learning a language.",
];

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapidary certify smollm2-135m models/smollm2-135m-gem
  lapidary certify smollm2-135m runs/gem/model --data ~/mteb --limit 0 --out certificate      # everything: hours
  lapidary certify smollm2-135m runs/all/model --max-kl 0.02 --max-mmlu-drop 1 --limit 570

Where the adapter's scope leaves the chat as it is (special, embed), every logit, reply and score has to be the base
model's, and the exit code is 1 where one is not. Where it changes the chat, what it costs is told, and the exit code is
1 beyond the limits that are given; what was not measured is beyond its limit.")]
pub(crate) struct CertifyArgs {
    /// The base model: a GGUF file, a model directory, a hub id, or a built-in name
    #[arg(value_name = "BASE")]
    base: String,
    /// The GEM directory
    #[arg(value_name = "GEM")]
    gem: String,
    /// A directory of tasks; those that ask for likelihoods (MMLU, ARC, LAMBADA, WikiText-2) are measured [default: the
    /// repository's data/, here or above the program: MMLU and WikiText-2]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Questions or texts of each task, spread over the set; of a raw text, hundreds of tokens; 0: all
    #[arg(long, value_name = "N", default_value_t = 24)]
    limit: usize,
    /// What the user says in the chats that are compared: a file with a column `text` [default: questions of MMLU]
    #[arg(long, value_name = "FILE")]
    chats: Option<PathBuf>,
    /// Number of chats
    #[arg(long, value_name = "N", default_value_t = 8)]
    num_chats: usize,
    #[command(flatten)]
    budget: Budget,
    /// Write certificate.md and certificate.json there too
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Number format of the weights of both models
    #[arg(long, value_name = "FORMAT", default_value = "stored")]
    weights: Weights,
}

/// What may be lost; beyond it the exit code is 1.
#[derive(Debug, Clone, Copy, Default, Args)]
struct Budget {
    /// Points of MMLU accuracy that may be lost; beyond them, or without MMLU, the exit code is 1
    #[arg(long, value_name = "POINTS", value_parser = allowance)]
    max_mmlu_drop: Option<f64>,
    /// Points of LAMBADA accuracy that may be lost; beyond them, or without LAMBADA, the exit code is 1
    #[arg(long, value_name = "POINTS", value_parser = allowance)]
    max_lambada_drop: Option<f64>,
    /// Percent that the perplexity of a raw text may rise; beyond them, or without such a text, the exit code is 1
    #[arg(long, value_name = "PERCENT", value_parser = allowance)]
    max_perplexity_rise: Option<f64>,
    /// Mean KL(base || GEM) of the next-token distributions that is allowed, nats; beyond it the exit code is 1
    #[arg(long, value_name = "NATS", value_parser = allowance)]
    max_kl: Option<f64>,
}

fn allowance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(limit) if limit.is_finite() && limit >= 0.0 => Ok(limit),
        _ => Err("expected a number, at least 0".to_owned()),
    }
}

/// A figure before and after; shares are in percent.
struct Figure {
    name: String,
    kind: TaskKind,
    metric: &'static str,
    base: f64,
    gem: f64,
    num_scored: usize,
}

/// All that the certificate says.
struct Findings {
    drift: Drift,
    num_chats: usize,
    same_replies: usize,
    /// Whether the scope of the adapter promises that chat does not change.
    promises_equality: bool,
    figures: Vec<Figure>,
}

pub(crate) fn run(args: &CertifyArgs, context: &Context) -> Result<()> {
    let full = check_models(args)?;
    let load = |model: &str, base: Option<String>| {
        context.load_model(&ModelArgs { model: Some(model.to_owned()), base, weights: Some(args.weights) })
    };
    let gem = load(&args.gem, Some(args.base.clone()))?;
    let base = load(&args.base, None)?;
    let data = args.data.clone().or_else(|| shipped("data", |dir| dir.join("MMLU").is_dir()));
    let prompts = prompts(args, data.as_deref())?;
    let (drift, same_replies) = compare_chats(&base, &gem, &prompts, context)?;
    let figures = match &data {
        Some(data) => figures(args, data, (&LanguageModel::of_base(base.base()), &language_model(&gem)), context)?,
        None => Vec::new(),
    };
    let promises_equality = !gem.method().adapts_plain_rows() && !full;
    let findings = Findings { drift, num_chats: prompts.len(), same_replies, promises_equality, figures };
    let checks = page::checks(&args.budget, &findings);
    let page = page::markdown(args, &findings, &checks);
    stdout().lock().write_all(page.as_bytes())?;
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        let json = serde_json::to_string_pretty(&page::json(args, &findings, &checks))? + "\n";
        write(&out.join("certificate.md"), &page)?;
        write(&out.join("certificate.json"), &json)?;
        context.note(&format!("written: {}", out.join("certificate.md").display()));
    }
    match page::broken(&checks) {
        None => Ok(()),
        Some(broken) => Err(Refused(broken).into()),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    Ok(write_file(path, |file| file.write_all(text.as_bytes()))?)
}

/// Checks what the two names lead to; whether the GEM is a full fine-tune.
fn check_models(args: &CertifyArgs) -> Result<bool> {
    let (base, gem) = (Path::new(&args.base), Path::new(&args.gem));
    if GemConfig::is_gem(base) {
        bail!("BASE: expected a base model, found a GEM directory: {}", args.base);
    }
    if !GemConfig::is_gem(gem) {
        let found = if gem.exists() { "none in" } else { "no such directory:" };
        bail!("GEM: expected a directory with a gem.json, found {found} {}", args.gem);
    }
    Ok(GemConfig::load(gem)?.full)
}

/// What the user says: from the file, from MMLU's questions, or from a few of our own.
fn prompts(args: &CertifyArgs, data: Option<&Path>) -> Result<Vec<String>> {
    let mmlu = data.and_then(|dir| split_file(&dir.join("MMLU"), "test").ok());
    let all = match (&args.chats, mmlu) {
        (Some(file), _) => load_texts(file)?,
        (None, Some(file)) => load_multiple_choice(&file)?.into_iter().map(|row| row.question).collect(),
        (None, None) => QUESTIONS.map(str::to_owned).to_vec(),
    };
    if args.num_chats == 0 {
        bail!("--num-chats: expected at least 1, found 0");
    }
    Ok(spread(all, args.num_chats))
}

/// The logits of both models on chats with the base model's replies, and the number of replies that are the same.
fn compare_chats(base: &Lapidary, gem: &Lapidary, prompts: &[String], context: &Context) -> Result<(Drift, usize)> {
    let options = GenerateOptions { max_new_tokens: REPLY_TOKENS, ..GenerateOptions::default() };
    let reply = |model: &Lapidary, row: &[TokenId]| -> Result<Vec<TokenId>> {
        let generator = model.generator();
        let go_on = &mut |_: &str| ControlFlow::Continue(());
        Ok(generator.generate(&mut generator.sequence(), row, &options, go_on)?.ids)
    };
    let bar = progress::bar(context, prompts.len() as u64, "chats")?;
    bar.set_message("greedy replies of both models");
    let (mut rows, mut same_replies) = (Vec::new(), 0);
    for prompt in prompts {
        let mut row = base.base().opening_ids(prompt)?;
        let written = reply(base, &row)?;
        same_replies += usize::from(written == reply(gem, &row)?);
        row.extend(written);
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let bar = progress::bar(context, prompts.len() as u64, "chats")?;
    bar.set_message("logits of both models");
    let (before, after) = (LanguageModel::of_base(base.base()), language_model(gem));
    let drift = drift(&before, &after, &rows, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok((drift, same_replies))
}

fn figures(
    args: &CertifyArgs,
    data: &Path,
    (base, gem): (&LanguageModel<'_>, &LanguageModel<'_>),
    context: &Context,
) -> Result<Vec<Figure>> {
    let limit = args.limit;
    let options = LanguageOptions { limit, max_tokens: limit.saturating_mul(TOKENS_OF_A_TEXT), ..Default::default() };
    let mut figures = Vec::new();
    for (name, kind) in local_tasks(data, &[])?.into_iter().filter(|(_, kind)| !kind.is_embedding()) {
        let bar = progress::bar(context, 0, "done")?;
        bar.set_message(format!("{name}, both models"));
        // One bar for both models: the time left is that of the task.
        let score = |model: &LanguageModel<'_>, which: u64| {
            score_language_task(&data.join(&name), kind, model, &options, &mut |done, all| {
                bar.set_length(2 * all as u64);
                bar.set_position(which * all as u64 + done as u64);
            })
            .with_context(|| name.clone())
        };
        let (before, after) = (score(base, 0)?, score(gem, 1)?);
        bar.finish_and_clear();
        for ((metric, base), (_, gem)) in before.metrics.into_iter().zip(after.metrics) {
            let scale = if metric == "perplexity" { 1.0 } else { 100.0 };
            let (base, gem, num_scored) = (scale * base, scale * gem, before.num_scored);
            figures.push(Figure { name: name.clone(), kind, metric, base, gem, num_scored });
        }
    }
    Ok(figures)
}
