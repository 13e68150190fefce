//! One piece of work, done again and again, with what each time took: our side of `cargo xtask bench`.
//!
//! The argument is a job as JSON, e.g.
//! `{"model":"model.gguf","weights":"bf16","repeat":3,"work":"embed","texts":"texts.txt"}`. Each repetition prints a line
//! of JSON: how many items, CPU and wall seconds, floating point operations of the weights' products, and the most memory
//! that the process has held. Something of the work is done beforehand, to warm up, and not printed.

use lapidary::embed::EmbedOptions;
use lapidary::generate::{Limits, Sampler, Sampling, Sequence, greedy, read};
use lapidary::layout::{Continuation, Example, Rng, TokenId};
use lapidary::model::{
    Adapter, BaseModel, Decoder, DecoderConfig, ForwardOptions, Kv, LoraConfig, ModelFiles, Segment, WeightFormat,
};
use lapidary::train::optimizer::{self, Group, Param, global_norm};
use lapidary::train::step::{LossWeights, StepModel, StepOptions, step};
use lapidary::train::{build_method, special_rows};
use lapidary::{Lapidary, cuda_device};
use rand::{Rng as _, SeedableRng as _};
use serde::Deserialize;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

mod recipe;

#[global_allocator]
static ALLOCATOR: lapidary::Allocator = lapidary::Allocator;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Deserialize)]
struct Job {
    model: PathBuf,
    weights: WeightFormat,
    /// The first GPU in place of the CPU.
    #[serde(default)]
    cuda: bool,
    repeat: usize,
    #[serde(flatten)]
    work: Work,
}

#[derive(Deserialize)]
#[serde(tag = "work", rename_all = "kebab-case")]
enum Work {
    /// Contrastive steps on rows of random tokens, k = 6; an item is a row.
    Train {
        scope: String,
        full: bool,
        rows: usize,
        tokens: usize,
        dropout: String,
        #[serde(default = "default_batch_tokens")]
        micro_batch_tokens: usize,
        /// Of the weights that frozen parts run through, where it is another.
        #[serde(default)]
        prefix_weights: Option<WeightFormat>,
    },
    /// A recipe's training, once; an item is a row of text. With `rows` they are written there, and nothing is trained.
    Recipe {
        recipe: String,
        #[serde(default)]
        overrides: Vec<String>,
        #[serde(default)]
        rows: Option<PathBuf>,
    },
    /// Unit vectors of the first lines of a file, or of all, by the mean over the text or, untrained, by `[E]`s; an item
    /// is a token.
    Embed {
        texts: PathBuf,
        #[serde(default)]
        num_texts: Option<usize>,
        #[serde(default)]
        num_special_tokens: Option<usize>,
        #[serde(default)]
        batch_tokens: Option<usize>,
        /// The texts are turned into tokens beforehand.
        #[serde(default)]
        encoded: bool,
    },
    /// Greedy continuations of a text's first tokens, or of several stretches of it at once; an item is a generated token.
    Decode {
        texts: PathBuf,
        prompt_tokens: usize,
        new_tokens: usize,
        #[serde(default)]
        rows: Option<usize>,
    },
    /// A text's first tokens through the model, to the logits of the last; an item is a token.
    Prefill { texts: PathBuf, tokens: usize },
    /// From the start of the program to the vector of a text by the mean over it; an item is a vector, and there is one
    /// repetition, the first.
    Start { text: String },
    /// From a question behind a document to the first token of the answer; an item is an answer. The document is read as
    /// `num_special_tokens` [E]s beforehand; with none, in full, with the question or, where it is to `keep`, beforehand.
    Answer {
        texts: PathBuf,
        tokens: usize,
        question_tokens: usize,
        num_special_tokens: usize,
        #[serde(default)]
        keep: bool,
    },
}

/// What one repetition did: items, and operations of products with weights.
struct Done {
    items: usize,
    flops: f64,
}

/// Positions that run together.
fn default_batch_tokens() -> usize {
    4096
}

fn main() -> Result<(), Failure> {
    kernels::prepare_process();
    let job = std::env::args().nth(1).ok_or("expected a job as JSON")?;
    let job: Job = serde_json::from_str(&job)?;
    let mut base = BaseModel::load(&ModelFiles::Gguf(job.model.clone()))?;
    if job.cuda {
        base.decoder.to_device(&cuda_device(0)?)?;
    }
    match &job.work {
        Work::Train { scope, full, rows, tokens, dropout, micro_batch_tokens, prefix_weights } => {
            let settings = json!({
                "scope": scope, "bottleneck_ratio": 0.0, "token_dropout": {"form": dropout, "ratio": 0.2}
            });
            let prefix = prefix_weights.map(|format| base.decoder.to_append_with(format)).transpose()?;
            train((base, prefix), &job, (&settings, *full), (*rows, *tokens, *micro_batch_tokens))
        }
        Work::Recipe { recipe, overrides, rows } => recipe::run(base, recipe, overrides, rows.as_deref()),
        Work::Embed { texts, num_texts, num_special_tokens, batch_tokens, encoded } => {
            base.decoder.set_weight_format(job.weights)?;
            let model = match num_special_tokens {
                Some(k) => Lapidary::from_base(base, "gem", json!({"num_special_tokens": k, "scope": "special"}))?,
                None => Lapidary::from_base(base, "mean", json!({}))?,
            };
            let texts = std::fs::read_to_string(texts)?;
            let lines: Vec<&str> = texts.lines().take(num_texts.unwrap_or(usize::MAX)).collect();
            let config = model.base().decoder.config();
            // The whole of it would be a long way to warm up.
            model.embed(&lines[..lines.len().min(64)])?;
            let plain = EmbedOptions::default();
            let options = EmbedOptions { batch_tokens: batch_tokens.unwrap_or(plain.batch_tokens), ..plain };
            let encode = |line: &&str| model.base().tokenizer.encode(line);
            let ids: Vec<_> = if *encoded { lines.iter().map(encode).collect::<Result<_, _>>()? } else { Vec::new() };
            measure(job.repeat, &mut || Ok(()), &mut |()| {
                let found = if ids.is_empty() {
                    model.embed_with(&lines, &options, &mut |_| {})?
                } else {
                    model.embedder().embed_ids(&ids, &options, &mut |_| {})?
                };
                let items = found.num_tokens;
                Ok(Done { items, flops: flops(config, items, 0) })
            })
        }
        Work::Start { text } => {
            base.decoder.set_weight_format(job.weights)?;
            let model = Lapidary::from_base(base, "mean", json!({}))?;
            model.embed(&[text.as_str()])?;
            let cpu_secs = kernels::process_cpu_secs().ok_or("no CPU time on this system")?;
            let wall_secs = secs_since_start().ok_or("no time of the start on this system")?;
            print(&Done { items: 1, flops: 0.0 }, cpu_secs, wall_secs);
            Ok(())
        }
        Work::Decode { texts, prompt_tokens, new_tokens, rows: Some(rows) } => {
            base.decoder.set_weight_format(job.weights)?;
            decode_rows(&base, &job, texts, (*rows, *prompt_tokens, *new_tokens))
        }
        Work::Decode { texts, prompt_tokens, new_tokens, rows: None } => {
            base.decoder.set_weight_format(job.weights)?;
            let prompt = first_tokens(&base, texts, *prompt_tokens)?;
            let limits = Limits { max_new_tokens: *new_tokens, eos_token_ids: &[] };
            // All but the prompt's last token is run beforehand.
            let mut read = || begun(&base.decoder, &prompt[..prompt_tokens - 1]);
            repeat(job.repeat, &mut read, &mut |mut sequence| {
                let mut sampler = Sampler::new(Sampling::default())?;
                sequence.generate(&prompt, &limits, &mut sampler, &mut |_| Ok(ControlFlow::Continue(())))?;
                Ok(Done { items: *new_tokens, flops: flops(base.decoder.config(), *new_tokens, *new_tokens) })
            })
        }
        Work::Prefill { texts, tokens } => {
            base.decoder.set_weight_format(job.weights)?;
            let prompt = first_tokens(&base, texts, *tokens)?;
            repeat(job.repeat, &mut || Ok(Sequence::new(&base.decoder, None)), &mut |mut sequence| {
                prompt.chunks(512).try_for_each(|chunk| sequence.push(chunk))?;
                Ok(Done { items: *tokens, flops: flops(base.decoder.config(), *tokens, 1) })
            })
        }
        Work::Answer { texts, tokens, question_tokens, num_special_tokens: k, keep } => {
            base.decoder.set_weight_format(job.weights)?;
            let all = first_tokens(&base, texts, tokens + question_tokens)?;
            let (document, question) = all.split_at(*tokens);
            let model = Lapidary::from_base(base, "gem", json!({"num_special_tokens": k.max(&1), "scope": "special"}))?;
            let decoder = &model.base().decoder;
            let mut prepare = || match (*k, *keep) {
                (0, keep) => begun(decoder, if keep { document } else { &[] }),
                _ => Ok(read(&model, document, Continuation::Rest)?),
            };
            repeat(job.repeat, &mut prepare, &mut |mut sequence| {
                let unread = if *k == 0 && !keep { &all } else { question };
                sequence.push(unread)?;
                greedy(sequence.logits()).ok_or("no logits")?;
                Ok(Done { items: 1, flops: flops(decoder.config(), unread.len(), 1) })
            })
        }
    }
}

/// A row of which these tokens have run.
fn begun<'a>(decoder: &'a Decoder, tokens: &[TokenId]) -> Result<Sequence<'a>, Failure> {
    let mut sequence = Sequence::new(decoder, None);
    tokens.chunks(512).try_for_each(|chunk| sequence.push(chunk))?;
    Ok(sequence)
}

/// Rows that are decoded together, a token of each in a pass; of the prompts all but the last token is run beforehand.
fn decode_rows(
    base: &BaseModel,
    job: &Job,
    texts: &Path,
    (rows, prompt_tokens, new_tokens): (usize, usize, usize),
) -> Result<(), Failure> {
    let (decoder, all) = (&base.decoder, first_tokens(base, texts, rows * prompt_tokens)?);
    let prompts: Vec<&[TokenId]> = all.chunks(prompt_tokens).collect();
    let mut prepare = || {
        let mut cache = decoder.new_cache();
        let prefix = Segment::plain_rows(prompts.iter().map(|prompt| &prompt[..prompt_tokens - 1]));
        decoder.append(&prefix, &mut cache, ForwardOptions { bf16_attention: true, ..ForwardOptions::default() })?;
        Ok((cache, prompts.iter().map(|prompt| prompt[prompt_tokens - 1]).collect::<Vec<TokenId>>()))
    };
    repeat(job.repeat, &mut prepare, &mut |(mut cache, mut last)| {
        for past in (prompt_tokens - 1..).take(new_tokens) {
            let next = Segment::next_of_rows(last.iter().map(|token| (std::slice::from_ref(token), past as u32)));
            let hidden = decoder.forward(&next, Kv::Append(&mut cache), ForwardOptions::default())?;
            let logits = decoder.logits(&hidden)?.to_vec2::<f32>()?;
            last = logits.iter().map(|logits| greedy(logits).ok_or("no logits")).collect::<Result<_, _>>()?;
        }
        let items = rows * new_tokens;
        Ok(Done { items, flops: flops(decoder.config(), items, items) })
    })
}

/// As [`measure`], after one repetition that is not told of.
fn repeat<T>(
    times: usize,
    prepare: &mut dyn FnMut() -> Result<T, Failure>,
    work: &mut dyn FnMut(T) -> Result<Done, Failure>,
) -> Result<(), Failure> {
    work(prepare()?)?;
    measure(times, prepare, work)
}

/// Runs `work` on what `prepare` makes, which is not timed.
fn measure<T>(
    times: usize,
    prepare: &mut dyn FnMut() -> Result<T, Failure>,
    work: &mut dyn FnMut(T) -> Result<Done, Failure>,
) -> Result<(), Failure> {
    let cpu_secs = || kernels::process_cpu_secs().ok_or("no CPU time on this system");
    for _ in 0..times {
        let prepared = prepare()?;
        let (clock, before) = (Instant::now(), cpu_secs()?);
        let done = work(prepared)?;
        print(&done, cpu_secs()? - before, clock.elapsed().as_secs_f64());
    }
    Ok(())
}

fn print(Done { items, flops }: &Done, cpu_secs: f64, wall_secs: f64) {
    let peak_mib = peak_mib().unwrap_or(0.0);
    let mut line =
        json!({"items": items, "cpu_secs": cpu_secs, "wall_secs": wall_secs, "flops": flops, "peak_mib": peak_mib});
    if let Some(bytes) = kernels::gpu_peak_bytes() {
        line["gpu_peak_mib"] = json!(bytes as f64 / f64::from(1 << 20));
    }
    println!("{line}");
}

/// Since this process was started, to a hundredth (proc(5): `starttime` is in ticks of that length).
fn secs_since_start() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let started: f64 = stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    Some(uptime.split_whitespace().next()?.parse::<f64>().ok()? - started / 100.0)
}

fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// Operations of the products with weights: two for each number of a layer's matrices and token, and of the head's for
/// each token that has logits. Attention's own are left out.
fn flops(config: &DecoderConfig, num_tokens: usize, num_logits: usize) -> f64 {
    let (d, h) = (config.hidden_size, config.head_dim);
    let attention = 2 * d * h * (config.num_attention_heads + config.num_key_value_heads);
    let layers = config.layers.len() * (attention + 3 * d * config.intermediate_size);
    2.0 * (num_tokens as f64 * layers as f64 + num_logits as f64 * (d * config.vocab_size) as f64)
}

/// The first tokens of a file's text.
fn first_tokens(base: &BaseModel, texts: &Path, count: usize) -> Result<Vec<TokenId>, Failure> {
    let ids = base.tokenizer.encode_long(&std::fs::read_to_string(texts)?)?;
    ids.get(..count)
        .map(<[TokenId]>::to_vec)
        .ok_or_else(|| format!("{}: fewer than {count} tokens", texts.display()).into())
}

fn train(
    (mut base, prefix): (BaseModel, Option<Decoder>),
    job: &Job,
    (settings, full): (&serde_json::Value, bool),
    (rows, tokens, micro_batch_tokens): (usize, usize, usize),
) -> Result<(), Failure> {
    let method = build_method(&base, "gem", settings.clone())?;
    let mut rng = Rng::seed_from_u64(0);
    let special = special_rows(&base, method.as_ref())?;
    let adapter = Adapter::new(&base.decoder, (!full).then(LoraConfig::default), &special, &mut rng)?;
    let weights = if full { base.decoder.make_trainable()? } else { adapter.lora_vars() };
    if !full {
        base.decoder.set_weight_format(job.weights)?;
    }
    let mut params: Vec<Param> = weights.into_iter().map(|(name, var)| Param::new(name, Group::Weights, var)).collect();
    params.extend(adapter.special_var().map(|var| Param::new("special_tokens".into(), Group::Special, var.clone())));
    let vars: Vec<_> = params.iter().map(|param| param.var.clone()).collect();
    let vocabulary = base.decoder.config().vocab_size as u32;
    let mut number = 0;
    repeat(job.repeat, &mut || Ok(()), &mut |()| {
        number += 1;
        let plans = (0..rows)
            .map(|_| {
                let text = (0..tokens).map(|_| rng.random_range(100..vocabulary)).collect();
                method.train_plan(&Example { text, ..Example::default() }, &mut rng)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let weights = LossWeights { next_token: 0.0, contrastive: 1.0, alignment: 0.0, scale: 20.0, similarity: None };
        let options = StepOptions { micro_batch_tokens, split_frozen: true, hidden_dropout: 0.0, dropout_seed: 0 };
        let model = StepModel {
            decoder: &base.decoder,
            prefix: prefix.as_ref().unwrap_or(&base.decoder),
            adapter: &adapter,
            vars: &vars,
        };
        let result = step(&model, &plans, &weights, &options)?;
        let norm = global_norm(&result.gradients)?;
        let adamw = kernels::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        optimizer::step(&mut params, &result.gradients, (number, norm, 1.0), |_| (adamw, 1e-4))?;
        kernels::synchronize(base.decoder.device())?;
        let num_tokens = plans.iter().flat_map(|plan| &plan.rows).map(|row| row.num_tokens()).sum();
        // Of a forward pass alone: what a backward pass takes depends on what is trained.
        Ok(Done { items: rows, flops: flops(base.decoder.config(), num_tokens, 0) })
    })
}
