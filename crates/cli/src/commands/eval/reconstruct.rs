//! `lapidary eval reconstruct`: what is left of a text in the special tokens, by its length.

use crate::args::ModelArgs;
use crate::commands::report;
use crate::context::Context;
use crate::progress;
use anyhow::{Result, bail};
use clap::Args;
use lapidary::Lapidary;
use lapidary::data::DataSpec;
use lapidary::eval::overlap::{chrf, token_f1};
use lapidary::generate::{SuffixLosses, reconstruct_ids, suffix_losses};
use lapidary::layout::{Continuation, TokenId};
use lapidary::output::atomic::write_file;
use lapidary::report::bars::{Series, bar_comparison};
use lapidary::report::html::{Block, Cell, Figure, Page, Section, Table};
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct ReconstructArgs {
    /// Files of texts to read, as for training
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
    /// Column of the text in data files [default: text, else the only text column]
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    #[command(flatten)]
    options: ReconstructOptions,
    /// Write the figures as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with the table and plots too: a name that ends in .html or .md, or a directory for both
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// At which lengths it is measured, and on how many texts.
#[derive(Debug, Clone, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ReconstructOptions {
    /// Lengths to measure at, tokens; longer texts are cut to each of them
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "8,16,32,64,128")]
    lengths: Vec<usize>,
    /// Texts of each length: the first that are long enough
    #[arg(long, value_name = "N", default_value_t = 32)]
    num_texts: usize,
}

impl Default for ReconstructOptions {
    fn default() -> Self {
        Self { lengths: vec![8, 16, 32, 64, 128], num_texts: 32 }
    }
}

impl ReconstructOptions {
    /// # Errors
    /// When nothing is measured, or at a length that has no halves of two tokens.
    pub(crate) fn check(&self) -> Result<()> {
        if self.num_texts == 0 || self.lengths.is_empty() || self.lengths.iter().any(|length| *length < 4) {
            bail!("num_texts and lengths: expected at least one text of at least 4 tokens");
        }
        Ok(())
    }
}

/// All figures of one length; shares are in 0..=1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Retention {
    pub(crate) num_tokens: usize,
    num_texts: usize,
    exact: f64,
    pub(crate) token_f1: f64,
    chrf: f64,
    pub(crate) reconstruction_loss: Losses,
    pub(crate) continuation_loss: Losses,
}

/// Nats a token of what follows, by what the model is given.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Losses {
    pub(crate) special_tokens: f64,
    pub(crate) nothing: f64,
    pub(crate) text: f64,
}

impl Losses {
    fn of(losses: &SuffixLosses) -> Self {
        let [special_tokens, nothing, text] = losses.by_token();
        Self { special_tokens, nothing, text }
    }

    fn all(&self) -> [f64; 3] {
        [self.special_tokens, self.nothing, self.text]
    }
}

pub(super) fn run(args: &ReconstructArgs, context: &Context) -> Result<Vec<Vec<String>>> {
    let gem = context.load_model(&args.model)?;
    let spec = DataSpec { paths: args.files.clone(), column: args.column.clone(), ..DataSpec::default() };
    let rows = measure_retention(&gem, &spec, &args.options, context)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        write_file(path, |file| file.write_all(text.as_bytes()))?;
    }
    let table = table(&rows);
    if let Some(out) = args.report.as_ref().filter(|_| !rows.is_empty()) {
        let page = page(&args.model.name(), &table, &rows)?;
        for (path, format) in report::outputs(out)? {
            report::write(&page, &path, format)?;
            context.note(&format!("report: {}", path.display()));
        }
    }
    Ok(table)
}

/// What a GEM's special tokens keep of the texts, by length; lengths that no text has are told and left out.
///
/// # Errors
/// When the texts cannot be read, or the method has no special tokens.
pub(crate) fn measure_retention(
    gem: &Lapidary,
    texts: &DataSpec,
    options: &ReconstructOptions,
    context: &Context,
) -> Result<Vec<Retention>> {
    options.check()?;
    let longest = options.lengths.iter().copied().max().unwrap_or(0);
    let texts = encoded(texts, options, gem)?;
    let bar = progress::bar(context, (options.lengths.len() * options.num_texts) as u64, "texts")?;
    let mut rows = Vec::new();
    for &length in &options.lengths {
        let long_enough = texts.iter().filter(|ids| ids.len() >= length);
        let cut: Vec<&[TokenId]> = long_enough.take(options.num_texts).map(|ids| &ids[..length]).collect();
        if cut.is_empty() {
            context.note(&format!("no text of {length} tokens (the longest asked for is {longest})"));
            continue;
        }
        rows.push(row(gem, length, &cut, &mut || bar.inc(1))?);
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// The table, and the losses by length.
fn page(model: &str, table: &[Vec<String>], rows: &[Retention]) -> Result<Page> {
    // Where it lies is nobody's business who reads the page.
    let name = Path::new(model).file_name().unwrap_or(model.as_ref());
    let lengths: Vec<String> = rows.iter().map(|row| format!("{} tokens", row.num_tokens)).collect();
    let figure = |title: &str, losses: fn(&Retention) -> &Losses| -> Result<Block> {
        let series = [("given the text", 2), ("given nothing", 1), ("given the [E]s", 0)].map(|(name, at)| Series {
            name: name.into(),
            values: rows.iter().map(|row| Some(losses(row).all()[at])).collect(),
        });
        Ok(Block::Figure(Figure {
            png: bar_comparison(title, &lengths, &series)?,
            caption: "Lower is better.".into(),
            alternative: format!("{title}, by length: three bars each, as in the table."),
        }))
    };
    let cells = |row: &Vec<String>| row.iter().map(Cell::new).collect();
    let scores = Block::Table(Table {
        caption: "Losses in nats a token; the first token of what is predicted is left out.".into(),
        columns: table[0].clone(),
        groups: [("", 2), ("written greedily", 3), ("the text again", 3), ("its rest", 3)]
            .map(|(name, columns)| (name.into(), columns))
            .to_vec(),
        rows: table[1..].iter().map(cells).collect(),
    });
    let blocks = vec![
        scores,
        figure("The text again, nats a token", |row| &row.reconstruction_loss)?,
        figure("Its second half after the first, nats a token", |row| &row.continuation_loss)?,
    ];
    Ok(Page {
        title: "What is left of a text in the special tokens".into(),
        summary: format!("Model: {}", name.to_string_lossy()),
        sections: vec![Section { heading: "By length".into(), blocks }],
        ..Page::default()
    })
}

/// Enough texts for every length.
fn encoded(spec: &DataSpec, options: &ReconstructOptions, gem: &Lapidary) -> Result<Vec<Vec<TokenId>>> {
    let mut missing: Vec<(usize, usize)> = options.lengths.iter().map(|length| (*length, options.num_texts)).collect();
    let mut texts = Vec::new();
    for record in lapidary::data::open(spec)? {
        let ids = gem.base().tokenizer.encode(&record?.text)?;
        let mut wanted = false;
        for (length, left) in &mut missing {
            if ids.len() >= *length && *left > 0 {
                (*left, wanted) = (*left - 1, true);
            }
        }
        if wanted {
            texts.push(ids);
        }
        if missing.iter().all(|(_, left)| *left == 0) {
            break;
        }
    }
    Ok(texts)
}

fn row(gem: &Lapidary, length: usize, texts: &[&[TokenId]], done: &mut dyn FnMut()) -> Result<Retention> {
    let (mut exact, mut f1, mut written) = (0, 0.0, Vec::new());
    let (mut reconstruction, mut continuation) = (SuffixLosses::default(), SuffixLosses::default());
    for ids in texts {
        let found = reconstruct_ids(gem, ids, None)?;
        exact += usize::from(found.ids == *ids);
        f1 += token_f1(&found.ids, ids);
        written.push((found.text, gem.base().tokenizer.decode(ids, true)?));
        reconstruction.add(&suffix_losses(gem, ids, Continuation::Again, ids)?);
        let (first, rest) = ids.split_at(length / 2);
        continuation.add(&suffix_losses(gem, first, Continuation::Rest, rest)?);
        done();
    }
    let pairs: Vec<(&str, &str)> =
        written.iter().map(|(found, original)| (found.as_str(), original.as_str())).collect();
    let num_texts = texts.len();
    Ok(Retention {
        num_tokens: length,
        exact: exact as f64 / num_texts as f64,
        token_f1: f1 / num_texts as f64,
        chrf: chrf(&pairs)?,
        reconstruction_loss: Losses::of(&reconstruction),
        continuation_loss: Losses::of(&continuation),
        num_texts,
    })
}

fn table(rows: &[Retention]) -> Vec<Vec<String>> {
    let head = [
        "tokens",
        "texts",
        "exact",
        "token F1",
        "chrF",
        "again: [E]s",
        "nothing",
        "text",
        "rest: [E]s",
        "nothing",
        "text",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let percent = |share: f64| format!("{:.1}", 100.0 * share);
        let mut cells = vec![row.num_tokens.to_string(), row.num_texts.to_string()];
        cells.extend([row.exact, row.token_f1, row.chrf].map(percent));
        for losses in [&row.reconstruction_loss, &row.continuation_loss] {
            cells.extend(losses.all().map(|loss| format!("{loss:.2}")));
        }
        table.push(cells);
    }
    table
}
