//! `lapidary embed`: texts to vectors, as JSON Lines, NumPy or Parquet.

use super::embed_input::{InputArgs, Texts};
use super::embed_shards;
use crate::args::EmbedModelArgs;
use crate::context::Context;
use crate::failure::Interrupted;
use crate::{interrupt, progress};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use indicatif::ProgressBar;
use lapidary::Lapidary;
use lapidary::embed::EmbedOptions;
use lapidary::output::vectors::VectorWriter;
use serde::Serialize;
use std::io::{BufWriter, StdoutLock, Write, stdout};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Texts that are embedded before their vectors are written and Ctrl-C is heard.
const CHUNK_TEXTS: usize = 512;

const EXAMPLES: &str = "\
Examples:
  lapidary embed \"A man plays a guitar.\" \"Someone makes music.\"
  lapidary embed --input 'corpus/*.jsonl.gz' --column body --output vectors.parquet --with-text
  lapidary embed --input corpus.txt --output vectors.npy --shard-size 10000
  cut -f2 table.tsv | lapidary embed > vectors.jsonl";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EmbedArgs {
    #[command(flatten)]
    pub(super) input: InputArgs,
    /// File of the vectors: .jsonl, .npy or .parquet [default: JSON Lines on standard output]
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub(super) output: Option<PathBuf>,
    /// Write the texts beside their vectors
    #[arg(long, help_heading = "Output")]
    pub(super) with_text: bool,
    /// Write files of N vectors each, such as vectors-00000.npy; a run that was ended goes on after the last whole file
    #[arg(long, value_name = "N", requires_all = ["output", "input"], help_heading = "Output")]
    pub(super) shard_size: Option<usize>,
    #[command(flatten)]
    pub(super) model: EmbedModelArgs,
    #[command(flatten)]
    pub(super) vectors: VectorArgs,
}

/// What happens to a vector on its way out.
#[derive(Debug, Clone, Args)]
pub(crate) struct VectorArgs {
    /// Leave the model's mean and deviation of each dimension unused
    #[arg(long, help_heading = "Vectors")]
    no_standardise: bool,
    /// Do not scale vectors to length one
    #[arg(long, help_heading = "Vectors")]
    no_normalise: bool,
    /// Cut longer texts; 0: at the model's limit
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Vectors")]
    max_tokens: usize,
    /// Tokens run at once: more take more memory; 0: 2048, on a GPU 32768
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Vectors")]
    batch_tokens: usize,
}

impl VectorArgs {
    /// The same for the library.
    pub(crate) fn options(&self) -> EmbedOptions {
        EmbedOptions {
            max_tokens: self.max_tokens,
            batch_tokens: self.batch_tokens,
            standardise: !self.no_standardise,
            normalise: !self.no_normalise,
        }
    }
}

/// What was embedded.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) num_texts: u64,
    pub(super) num_truncated: usize,
    pub(super) num_tokens: usize,
}

impl Totals {
    fn tell(&self, context: &Context) {
        let Self { num_texts, num_truncated, num_tokens } = self;
        let cut = if *num_truncated > 0 { format!("; {num_truncated} were too long and cut") } else { String::new() };
        let (texts, tokens) = (progress::grouped(*num_texts), progress::grouped(*num_tokens as u64));
        context.note(&format!("{texts} texts, {tokens} tokens{cut}"));
    }
}

/// One line on standard output.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    embedding: &'a [f32],
}

/// Where vectors go.
pub(super) enum Sink {
    Lines(BufWriter<StdoutLock<'static>>),
    File(VectorWriter),
}

impl Sink {
    fn push(&mut self, text: Option<&str>, embedding: &[f32]) -> Result<()> {
        match self {
            Self::Lines(out) => {
                serde_json::to_writer(&mut *out, &Row { text, embedding }).map_err(std::io::Error::from)?;
                Ok(writeln!(out)?)
            }
            Self::File(writer) => Ok(writer.push(text, embedding)?),
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Lines(mut out) => Ok(out.flush()?),
            Self::File(writer) => Ok(writer.finish().map(drop)?),
        }
    }
}

/// A model at work on one command's texts.
pub(super) struct Work<'a> {
    pub(super) model: &'a Lapidary,
    pub(super) options: EmbedOptions,
    pub(super) with_text: bool,
    pub(super) stop: &'a AtomicBool,
    pub(super) bar: ProgressBar,
    pub(super) totals: Totals,
}

impl Work<'_> {
    /// Embeds at most `count` texts into `sink`; returns how many there were.
    ///
    /// # Errors
    /// When a text cannot be read or embedded, a vector not be written, or the user asks to stop.
    pub(super) fn run(&mut self, texts: &mut Texts, count: usize, sink: &mut Sink) -> Result<usize> {
        let mut done = 0;
        while done < count {
            let chunk = texts.take(CHUNK_TEXTS.min(count - done)).collect::<Result<Vec<String>>>()?;
            if chunk.is_empty() {
                break;
            }
            let before = self.totals.num_texts;
            let mut progress = |n| self.bar.set_position(before + n as u64);
            let embedded = self.model.embed_with(&chunk, &self.options, &mut progress);
            // The library counts the texts of the call, the user those of the input.
            let embedded = embedded.with_context(|| format!("among the texts after the first {before}"))?;
            for (text, vector) in chunk.iter().zip(&embedded.vectors) {
                sink.push(self.with_text.then_some(text.as_str()), vector)?;
            }
            done += chunk.len();
            self.totals.num_texts += chunk.len() as u64;
            self.totals.num_truncated += embedded.num_truncated;
            self.totals.num_tokens += embedded.num_tokens;
            if self.stop.load(Ordering::Relaxed) {
                bail!(Interrupted(format!("stopped after {} texts", self.totals.num_texts)));
            }
        }
        Ok(done)
    }
}

/// Runs the command.
///
/// # Errors
/// When a text, the model or the output is at fault.
pub(crate) fn run(args: &EmbedArgs, context: &Context) -> Result<()> {
    // A wrong extension is told before the work, not after it.
    if let (Some(output), true) = (&args.output, args.with_text)
        && output.extension().is_some_and(|extension| extension == "npy")
    {
        bail!("--with-text: {} cannot hold texts; choose .jsonl or .parquet", output.display());
    }
    // Every row of the files is read once before, so that a bad one is told before hours of work, not after.
    let input = if args.input.input.is_empty() { None } else { Some(embed_shards::scan(args)?) };
    let mut texts = args.input.texts(context)?;
    let model = context.load_to_embed(&args.model)?;
    let stop = interrupt::stop_flag("stopping after this batch")?;
    let bar = match (&input, &texts) {
        (Some(input), _) => progress::bar(context, input.num_texts, "texts")?,
        (None, Texts::Arguments(texts)) => progress::bar(context, texts.len() as u64, "texts")?,
        (None, _) => progress::counter(context, "texts")?,
    };
    let options = args.vectors.options();
    let mut work =
        Work { model: &model, options, with_text: args.with_text, stop: &stop, bar, totals: Totals::default() };
    if let (Some(size), Some(output), Some(input)) = (args.shard_size, &args.output, &input) {
        embed_shards::run(&mut work, &mut texts, &embed_shards::Plan { size, output, input }, context)?;
    } else {
        let mut sink = match &args.output {
            Some(path) => {
                let width = model.base().decoder.config().hidden_size;
                Sink::File(VectorWriter::create(path, width, args.with_text)?)
            }
            None => Sink::Lines(BufWriter::new(stdout().lock())),
        };
        work.run(&mut texts, usize::MAX, &mut sink)?;
        sink.finish()?;
    }
    work.bar.finish_and_clear();
    if args.output.is_some() || work.totals.num_truncated > 0 {
        work.totals.tell(context);
    }
    Ok(())
}
