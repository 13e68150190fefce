//! `lapidary reconstruct`: what the special tokens remember of a text, written out by the model itself.

use crate::args::ModelArgs;
use crate::context::Context;
use anyhow::{Context as _, Result};
use clap::Args;
use lapidary::generate::reconstruct;
use std::io::{Write as _, stdout};

const EXAMPLES: &str = "\
Examples:
  lapidary reconstruct \"A man is playing a guitar.\"
  lapidary reconstruct \"First text.\" \"Second text.\" --json
  lapidary reconstruct --model my-gem --max-new-tokens 40 \"A man is playing a guitar.\"";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReconstructArgs {
    /// The texts to read, and to write again from the special tokens' keys and values alone
    #[arg(value_name = "TEXT", required = true)]
    texts: Vec<String>,
    /// Write at most this many tokens [default: as many as the text has]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded, has no special tokens, or a text does not fit.
pub(crate) fn run(args: &ReconstructArgs, context: &Context) -> Result<()> {
    let gem = context.load_model(&args.model)?;
    let mut out = stdout().lock();
    for (i, text) in args.texts.iter().enumerate() {
        let found = reconstruct(&gem, text, args.max_new_tokens).with_context(|| format!("text {}", i + 1))?;
        if args.json {
            let line = serde_json::json!({
                "text": text,
                "reconstruction": found.text,
                "recovered": found.recovered,
                "num_text_tokens": found.num_text_tokens,
                "num_special_tokens": found.num_special_tokens,
                "num_kv_bytes": found.num_kv_bytes,
            });
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "text            {text}")?;
            writeln!(out, "reconstruction  {}", found.text)?;
            writeln!(
                out,
                "recovered       {:.0}% of {} tokens, in order, from {} special tokens ({:.0} KiB of keys and values)",
                100.0 * found.recovered,
                found.num_text_tokens,
                found.num_special_tokens,
                found.num_kv_bytes as f64 / 1024.0,
            )?;
        }
        out.flush()?;
    }
    Ok(())
}
