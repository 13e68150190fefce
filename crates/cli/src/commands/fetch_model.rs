//! `lapidary fetch`: a model's files on this machine.

use crate::context::Context;
use anyhow::Result;
use clap::Args;
use lapidary::model::ModelFiles;
use std::io::{Write as _, stdout};

const EXAMPLES: &str = "\
Examples:
  lapidary fetch smollm2-135m
  lapidary fetch smollm2-135m --verify --offline
  lapidary fetch HuggingFaceTB/SmolLM2-360M-Instruct@main";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct FetchArgs {
    /// A built-in name (smollm2-135m, gemma3-270m) or a hub id: organisation/name, also with @revision behind it
    #[arg(value_name = "MODEL")]
    model: String,
    /// Hash a built-in model again, even if that was done before
    #[arg(long)]
    verify: bool,
}

/// Runs the command: prints where the files are.
///
/// # Errors
/// When the model is unknown, cannot be fetched, or has another hash than expected.
pub(crate) fn run(args: &FetchArgs, context: &Context) -> Result<()> {
    let (ModelFiles::Gguf(path) | ModelFiles::Directory(path)) = context.fetch(&args.model, args.verify)?;
    Ok(writeln!(stdout().lock(), "{}", path.display())?)
}
