//! `lapidary generate`: the continuation of a text as it is, without a chat template.

use crate::args::ModelArgs;
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use lapidary::generate::{Finish, GenerateOptions, Generation, Generator, Sequence};
use lapidary::layout::TokenId;
use std::io::{IsTerminal as _, Read as _, Write as _, stdin, stdout};
use std::ops::ControlFlow;

const EXAMPLES: &str = "\
Examples:
  lapidary generate \"The capital of France is\" --max-new-tokens 8
  lapidary generate \"Once upon a time\" --temperature 0.8 --seed 1
  lapidary generate --special \"<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n\"
  cat beginning.txt | lapidary generate --stop \"THE END\"";

/// How tokens are chosen, and when to end.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct SamplingArgs {
    /// End after this many tokens [default: as the model says, else 512]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Divide the logits by this before drawing; 0: always the most probable token [default: as the model says, else 0]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw from the K most probable tokens; 0: all [default: as the model says, else 50]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the fewest most probable tokens whose probabilities sum to P [default: as the model says, else 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw from tokens at least P times as probable as the most probable [default: as the model says, else 0]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Make tokens that are there already less probable by this factor [default: as the model says, else 1]
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Seed of the draw [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Tell on stderr how many tokens were run, and how fast
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

impl SamplingArgs {
    /// The model's own options with what was asked for in their place.
    pub(crate) fn options(&self, defaults: GenerateOptions) -> Result<GenerateOptions> {
        let mut options = defaults;
        let sampling = &mut options.sampling;
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.top_k = self.top_k.unwrap_or(sampling.top_k);
        sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty = self.repetition_penalty.unwrap_or(sampling.repetition_penalty);
        sampling.seed = self.seed.or(sampling.seed);
        sampling.validate()?;
        options.max_new_tokens = self.max_new_tokens.unwrap_or(options.max_new_tokens);
        options.stop.clone_from(&self.stop);
        Ok(options)
    }
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GenerateArgs {
    /// The text to continue [default: what stdin has]
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    /// Read the strings of special tokens in the prompt as those tokens, put no BOS before it, and read \n as a line break
    #[arg(long)]
    special: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded, an option is out of range or the prompt does not fit.
pub(crate) fn run(args: &GenerateArgs, context: &Context) -> Result<()> {
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if stdin().is_terminal() => bail!("expected a prompt, as an argument or on stdin, found none"),
        None => read_stdin()?,
    };
    let gem = context.load_model(&args.model)?;
    let options = args.sampling.options(gem.generate_options())?;
    let ids = if args.special {
        gem.base().tokenizer.encode_with_special(&prompt.replace("\\n", "\n"))?
    } else {
        gem.prompt_ids(&prompt)?
    };
    let generator = gem.generator();
    let generation = stream(&generator, &mut generator.sequence(), &ids, &options, &mut || false)?;
    if args.sampling.verbose {
        tell_speed(&generation);
    }
    Ok(())
}

/// All of stdin, as text.
pub(crate) fn read_stdin() -> Result<String> {
    let mut text = String::new();
    stdin().read_to_string(&mut text).context("stdin: expected UTF-8 text")?;
    Ok(text)
}

/// Generates and prints each piece of text as it comes, and a line break behind the last; `interrupted` is asked after
/// each token.
pub(crate) fn stream(
    generator: &Generator<'_>,
    sequence: &mut Sequence<'_>,
    ids: &[TokenId],
    options: &GenerateOptions,
    interrupted: &mut dyn FnMut() -> bool,
) -> Result<Generation> {
    let mut out = stdout().lock();
    let mut written = Ok(());
    let generation = generator.generate(sequence, ids, options, &mut |piece| {
        if !piece.is_empty() {
            written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
        }
        if written.is_err() || interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    written.and_then(|()| writeln!(out)).context("cannot write to stdout")?;
    Ok(generation)
}

/// Counts, speed and the reason of the end, on stderr.
pub(crate) fn tell_speed(generation: &Generation) {
    let Generation { ids, finish, num_prompt_tokens, num_cached_tokens, prefill_secs, decode_secs, .. } = generation;
    let run = num_prompt_tokens - num_cached_tokens;
    let speed = |tokens: usize, secs: f64| tokens as f64 / secs.max(1e-9);
    let finish = match finish {
        Finish::Stop => "end of text",
        Finish::Length => "--max-new-tokens reached",
        Finish::Context => "the model's context is full",
        Finish::Interrupted => "interrupted",
    };
    eprintln!(
        "prompt: {run} tokens ({num_cached_tokens} more reused), {:.1} tokens/s; reply: {} tokens, {:.1} tokens/s; {finish}",
        speed(run, *prefill_secs),
        ids.len(),
        speed(ids.len(), *decode_secs),
    );
}
