//! `lapidary certify`: what a GEM has cost its base model, on one page.

use crate::args::ModelArgs;
use crate::commands::eval::language_model;
use crate::context::Context;
use crate::failure::Refused;
use crate::progress;
use crate::table::aligned;
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
use lapidary::text::Message;
use serde_json::{Value, json};
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

/// Tokens of a greedy reply.
const REPLY_TOKENS: usize = 48;
/// Chats where the user names no file: questions of the MMLU set, or these.
const QUESTIONS: [&str; 4] = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
    "Give me three tips for learning a language.",
];

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapidary certify smollm2-135m models/smollm2-135m-gem --data data
  lapidary certify smollm2-135m runs/gem/model --data ~/mteb --limit 0 --out certificate
  lapidary certify smollm2-135m runs/all/model --data data --max-kl 0.02 --max-mmlu-drop 1   # exit code 1 beyond these")]
pub(crate) struct CertifyArgs {
    /// The base model: a GGUF file, a model directory, a hub id, or a built-in name
    #[arg(value_name = "BASE")]
    base: String,
    /// The GEM directory
    #[arg(value_name = "GEM")]
    gem: String,
    /// A directory of tasks; those that ask for likelihoods (MMLU, ARC, LAMBADA, WikiText-2) are measured
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Questions or texts of each task, spread over the set; of a raw text, thousands of tokens; 0: all
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// What the user says in the chats that are compared: a file with a column `text`
    #[arg(long, value_name = "FILE")]
    chats: Option<PathBuf>,
    /// Number of chats
    #[arg(long, value_name = "N", default_value_t = 16)]
    num_chats: usize,
    /// Points of MMLU accuracy that may be lost; beyond them the exit code is 1
    #[arg(long, value_name = "POINTS")]
    max_mmlu_drop: Option<f64>,
    /// Mean divergence of next-token distributions that is allowed, nats; beyond it the exit code is 1
    #[arg(long, value_name = "NATS")]
    max_kl: Option<f64>,
    /// Write certificate.md and certificate.json there too
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A figure before and after.
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
    let load = |model: &str, base: Option<String>| {
        context.load_model(&ModelArgs { model: Some(model.to_owned()), base, ..ModelArgs::default() })
    };
    let gem = load(&args.gem, Some(args.base.clone()))?;
    let base = load(&args.base, None)?;
    let findings = examine(args, &base, &gem, context)?;
    let broken = broken_promises(args, &findings);
    let page = page(args, &findings, &broken);
    stdout().lock().write_all(page.as_bytes())?;
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        let json = serde_json::to_string_pretty(&as_json(args, &findings, &broken))? + "\n";
        write(&out.join("certificate.md"), &page)?;
        write(&out.join("certificate.json"), &json)?;
        context.note(&format!("written: {}", out.join("certificate.md").display()));
    }
    if broken.is_empty() { Ok(()) } else { Err(Refused(broken.join("; ")).into()) }
}

fn write(path: &Path, text: &str) -> Result<()> {
    Ok(write_file(path, |file| file.write_all(text.as_bytes()))?)
}

fn examine(args: &CertifyArgs, base: &Lapidary, gem: &Lapidary, context: &Context) -> Result<Findings> {
    let before = LanguageModel::of_base(base.base());
    let after = language_model(gem);
    let options = GenerateOptions { max_new_tokens: REPLY_TOKENS, ..GenerateOptions::default() };
    let prompts = prompts(args)?;
    let bar = progress::bar(context, 2 * prompts.len() as u64, "chats")?;
    bar.set_message("greedy replies of both models");
    let (mut rows, mut same_replies) = (Vec::new(), 0);
    for (i, prompt) in prompts.iter().enumerate() {
        let messages = [Message { role: "user".into(), content: prompt.clone() }];
        let mut row: Vec<TokenId> = base.chat_ids(&messages)?;
        let reply = base.chat(&messages, &options)?;
        same_replies += usize::from(reply.ids == gem.chat(&messages, &options)?.ids);
        row.extend(reply.ids);
        rows.push(row);
        bar.set_position(i as u64 + 1);
    }
    bar.set_message("logits of both models");
    let drift = drift(&before, &after, &rows, &mut |done| bar.set_position((prompts.len() + done) as u64))?;
    bar.finish_and_clear();
    let figures = figures(args, (&before, &after), context)?;
    let full = GemConfig::is_gem(Path::new(&args.gem)) && GemConfig::load(Path::new(&args.gem))?.full;
    let promises_equality = !gem.method().adapts_plain_rows() && !full;
    Ok(Findings { drift, num_chats: prompts.len(), same_replies, promises_equality, figures })
}

/// What the user says: from the file, from MMLU's questions, or from a few of our own.
fn prompts(args: &CertifyArgs) -> Result<Vec<String>> {
    let mmlu = args.data.as_ref().and_then(|dir| split_file(&dir.join("MMLU"), "test").ok());
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

fn figures(
    args: &CertifyArgs,
    (base, gem): (&LanguageModel<'_>, &LanguageModel<'_>),
    context: &Context,
) -> Result<Vec<Figure>> {
    let Some(data) = &args.data else { return Ok(Vec::new()) };
    let mut figures = Vec::new();
    for (name, kind) in local_tasks(data, &[])?.into_iter().filter(|(_, kind)| !kind.is_embedding()) {
        let options = LanguageOptions { limit: args.limit, ..LanguageOptions::default() };
        let bar = progress::bar(context, 0, "done")?;
        let score = |model: &LanguageModel<'_>, which: &str| {
            bar.set_message(format!("{name}, {which}"));
            score_language_task(&data.join(&name), kind, model, &options, &mut |done, all| {
                bar.set_length(all as u64);
                bar.set_position(done as u64);
            })
        };
        let (before, after) = (score(base, "base")?, score(gem, "GEM")?);
        bar.finish_and_clear();
        for ((metric, base), (_, gem)) in before.metrics.into_iter().zip(after.metrics) {
            let scale = if metric == "perplexity" { 1.0 } else { 100.0 };
            let (base, gem, num_scored) = (scale * base, scale * gem, before.num_scored);
            figures.push(Figure { name: name.clone(), kind, metric, base, gem, num_scored });
        }
    }
    Ok(figures)
}

/// What the GEM may not be, by its scope and by the user's budget.
fn broken_promises(args: &CertifyArgs, findings: &Findings) -> Vec<String> {
    let mut broken = Vec::new();
    if findings.promises_equality && (findings.drift.num_differing > 0 || findings.same_replies < findings.num_chats) {
        broken.push("the adapter's scope promises the base model's logits bit for bit, and they differ".to_owned());
    }
    if let Some(limit) = args.max_kl.filter(|limit| findings.drift.mean_kl > *limit) {
        broken.push(format!("mean divergence {:.6} nats, allowed {limit}", findings.drift.mean_kl));
    }
    if let Some(limit) = args.max_mmlu_drop {
        let choices = || findings.figures.iter().filter(|figure| figure.kind == TaskKind::LetterChoice);
        if choices().next().is_none() {
            broken.push("--max-mmlu-drop: no MMLU was measured (--data names no directory that has it)".to_owned());
        }
        for figure in choices().filter(|figure| figure.base - figure.gem > limit) {
            broken.push(format!("{} lost {:.2} points, allowed {limit}", figure.name, figure.base - figure.gem));
        }
    }
    broken
}

fn page(args: &CertifyArgs, findings: &Findings, broken: &[String]) -> String {
    let Findings { drift, num_chats, same_replies, promises_equality, figures } = findings;
    let mut page = format!(
        "# Damage certificate\n\nBase model: {}\nGEM: {}\n\n{}\n\n## Next-token distributions on {num_chats} chats\n\n",
        args.base,
        args.gem,
        if broken.is_empty() {
            "**Within its promises.**".to_owned()
        } else {
            format!("**Refused**: {}.", broken.join("; "))
        }
    );
    page += &format!(
        "- {} of {} logits differ in any bit{}\n",
        progress::grouped(drift.num_differing as u64),
        progress::grouped(drift.num_logits as u64),
        if *promises_equality { " (the adapter's scope promises none)" } else { "" }
    );
    page += &format!("- KL(base || GEM): mean {:.6}, largest {:.6} nats\n", drift.mean_kl, drift.max_kl);
    page += &format!(
        "- the most likely token is the same at {:.2} % of {} positions\n",
        100.0 * drift.same_top,
        drift.num_positions
    );
    page += &format!("- {same_replies} of {num_chats} greedy replies of up to {REPLY_TOKENS} tokens are equal\n");
    if !figures.is_empty() {
        let mut rows = vec![["task", "metric", "of", "base", "GEM", "change"].map(str::to_owned).to_vec()];
        for figure in figures {
            let number = |value: f64| format!("{value:.4}");
            rows.push(vec![
                figure.name.clone(),
                figure.metric.to_owned(),
                progress::grouped(figure.num_scored as u64),
                number(figure.base),
                number(figure.gem),
                format!("{:+.4}", figure.gem - figure.base),
            ]);
        }
        page += &format!("\n## What it knows\n\n```\n{}```\n", aligned(&rows));
    }
    page
}

fn as_json(args: &CertifyArgs, findings: &Findings, broken: &[String]) -> Value {
    let Findings { drift, num_chats, same_replies, promises_equality, figures } = findings;
    let figures: Vec<Value> = figures
        .iter()
        .map(|f| json!({"task": f.name, "metric": f.metric, "num_scored": f.num_scored, "base": f.base, "gem": f.gem}))
        .collect();
    json!({
        "base": args.base,
        "gem": args.gem,
        "passed": broken.is_empty(),
        "broken": broken,
        "promises_equality": promises_equality,
        "num_chats": num_chats,
        "num_same_replies": same_replies,
        "num_positions": drift.num_positions,
        "num_logits": drift.num_logits,
        "num_differing_logits": drift.num_differing,
        "mean_kl": drift.mean_kl,
        "max_kl": drift.max_kl,
        "same_top": drift.same_top,
        "figures": figures,
    })
}
