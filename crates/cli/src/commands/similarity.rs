//! `lapidary similarity`: the cosine of every pair of texts, or of a query and every text.

use super::embed::VectorArgs;
use super::embed_input::InputArgs;
use crate::args::EmbedModelArgs;
use crate::context::Context;
use crate::progress;
use crate::table::{aligned, shortened};
use anyhow::{Result, bail};
use clap::Args;
use lapidary::output::atomic::write_file;
use lapidary::report::heat_map::similarity_heat_map;
use std::io::{Write as _, stdout};
use std::path::PathBuf;

/// More columns than this do not fit a terminal.
const MAX_MATRIX_TEXTS: usize = 32;
/// Characters of a text in the matrix and in the ranking.
const LABEL_CHARS: usize = 40;
const RANKED_CHARS: usize = 90;

const EXAMPLES: &str = "\
Examples:
  lapidary similarity \"A man plays a guitar.\" \"Someone makes music.\" \"It rains.\"
  lapidary similarity --input sentences.txt --png map.png
  lapidary similarity --query \"how do I reset my password\" --input faq.jsonl --column question --top 5";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SimilarityArgs {
    #[command(flatten)]
    input: InputArgs,
    /// Rank the texts by their similarity to this one instead
    #[arg(long, value_name = "TEXT")]
    query: Option<String>,
    /// Show so many of the ranked texts; 0: all
    #[arg(long, value_name = "N", default_value_t = 10, requires = "query")]
    top: usize,
    /// Write the matrix as a picture too
    #[arg(long, value_name = "FILE", conflicts_with = "query")]
    png: Option<PathBuf>,
    #[command(flatten)]
    model: EmbedModelArgs,
    #[command(flatten)]
    vectors: VectorArgs,
}

/// Runs the command.
///
/// # Errors
/// When a text, the model or the picture's file is at fault.
pub(crate) fn run(args: &SimilarityArgs, context: &Context) -> Result<()> {
    let mut texts = args.input.texts(context)?.collect::<Result<Vec<String>>>()?;
    if args.query.is_none() && !(2..=MAX_MATRIX_TEXTS).contains(&texts.len()) {
        bail!("expected 2 to {MAX_MATRIX_TEXTS} texts, found {}; --query ranks any number of them", texts.len());
    }
    let model = context.load_to_embed(&args.model)?;
    texts.splice(0..0, args.query.clone());
    let bar = progress::bar(context, texts.len() as u64, "texts")?;
    let embedded = model.embed_with(&texts, &args.vectors.options(), &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if embedded.num_truncated > 0 {
        context.note(&format!("{} texts were too long and cut", embedded.num_truncated));
    }
    let vectors = &embedded.vectors;
    if args.query.is_some() {
        let scores = vectors[1..].iter().map(|vector| cosine(&vectors[0], vector)).collect();
        return print_ranking(scores, &texts[1..], args.top);
    }
    let matrix: Vec<f32> = vectors.iter().flat_map(|a| vectors.iter().map(|b| cosine(a, b) as f32)).collect();
    print_matrix(&texts, &matrix)?;
    if let Some(path) = &args.png {
        let labels: Vec<String> = texts.iter().map(|text| shortened(text, 200)).collect();
        let png = similarity_heat_map("Cosine similarity", &labels, &matrix)?;
        write_file(path, |file| file.write_all(&png))?;
        context.note(&format!("picture: {}", path.display()));
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

fn print_matrix(texts: &[String], matrix: &[f32]) -> Result<()> {
    let count = texts.len();
    let digits = count.to_string().len();
    let mut rows = vec![std::iter::once(String::new()).chain((1..=count).map(|n| n.to_string())).collect::<Vec<_>>()];
    for (index, (text, row)) in texts.iter().zip(matrix.chunks(count)).enumerate() {
        let label = format!("{:>digits$}  {}", index + 1, shortened(text, LABEL_CHARS));
        rows.push(std::iter::once(label).chain(row.iter().map(|value| format!("{value:.2}"))).collect());
    }
    Ok(stdout().lock().write_all(aligned(&rows).as_bytes())?)
}

fn print_ranking(scores: Vec<f64>, texts: &[String], top: usize) -> Result<()> {
    let mut ranked: Vec<(f64, &String)> = scores.into_iter().zip(texts).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut out = stdout().lock();
    for (score, text) in ranked.iter().take(if top == 0 { usize::MAX } else { top }) {
        writeln!(out, "{score:6.3}  {}", shortened(text, RANKED_CHARS))?;
    }
    Ok(())
}
