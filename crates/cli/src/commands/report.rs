//! `lapidary report`: evaluation runs side by side, as a table, an HTML page, and Markdown with pictures.

use crate::context::Context;
use crate::table::aligned;
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use lapidary::output::atomic::write_file;
use lapidary::report::comparison::{Order, compare};
use lapidary::report::html::{Page, Table, render};
use lapidary::report::{markdown, results};
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  lapidary report results
  lapidary report results --out report.html
  lapidary report results/lapidary__* ~/mteb/results/org__model --tasks STS17 SICK-R --out docs/sts.md
  lapidary report results --out docs/ --title \"One base model, five methods\"

Results are those of lapidary eval tasks and of the mteb package, RESULTS/MODEL/REVISION/TASK.json, and those of
lm-evaluation-harness, MODEL/results_DATE.json.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReportArgs {
    /// Directories of results, of a model, or of one of its revisions
    #[arg(value_name = "RESULTS", required = true)]
    results: Vec<PathBuf>,
    /// Where to write: a name that ends in .html or .md, or a directory for report.html and report.md; may be repeated
    #[arg(long, short, value_name = "FILE")]
    out: Vec<PathBuf>,
    /// These tasks alone, by name
    #[arg(long, value_name = "TASK", num_args = 1..)]
    tasks: Vec<String>,
    /// Order of the models: by their mean over common tasks, or by name
    #[arg(long, value_name = "ORDER", default_value = "mean")]
    sort: Sort,
    /// Title of the page
    #[arg(long, value_name = "TEXT", default_value = "Models compared")]
    title: String,
}

/// [`Order`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sort {
    Mean,
    Name,
}

/// What a file is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Html,
    Markdown,
}

/// Runs the command.
///
/// # Errors
/// When no result can be read, a task that is named has none, or the disk is at fault.
pub(crate) fn run(args: &ReportArgs, context: &Context) -> Result<()> {
    let files = args.out.iter().map(|out| outputs(out)).collect::<Result<Vec<_>>>()?.concat();
    let found = results::read_runs(&args.results);
    let unreadable: Vec<String> =
        found.unreadable.iter().map(|(path, reason)| format!("{}: {reason}", path.display())).collect();
    if found.runs.is_empty() {
        let named: Vec<String> = args.results.iter().map(|path| path.display().to_string()).collect();
        let why = if unreadable.is_empty() { "found none".to_owned() } else { unreadable.join("; ") };
        bail!("{}: expected results as RESULTS/MODEL/REVISION/TASK.json, {why}", named.join(", "));
    }
    let is_known = |task: &&String| found.runs.iter().any(|run| run.results.iter().any(|r| r.task == **task));
    if let Some(task) = args.tasks.iter().find(|task| !is_known(task)) {
        bail!("--tasks: no result of {task}");
    }
    let order = match args.sort {
        Sort::Mean => Order::Mean,
        Sort::Name => Order::Name,
    };
    let comparison = compare(found.runs, &args.tasks, order);
    let footer = format!("Written by lapidary {}.", env!("CARGO_PKG_VERSION"));
    let page = comparison.page(&args.title, &footer, &unreadable)?;
    for note in unreadable.iter().map(|note| format!("not read: {note}")).chain(comparison.notes.iter().cloned()) {
        context.note(&note);
    }
    for (path, format) in &files {
        write(&page, path, *format)?;
        context.note(&format!("report: {}", path.display()));
    }
    Ok(stdout().lock().write_all(plain(&comparison.table()).as_bytes())?)
}

/// The files that one `--out` stands for.
///
/// # Errors
/// When its name says no format.
pub(crate) fn outputs(out: &Path) -> Result<Vec<(PathBuf, Format)>> {
    match out.extension().and_then(|extension| extension.to_str()) {
        _ if out.is_dir() || out.to_string_lossy().ends_with(['/', '\\']) => {
            Ok(vec![(out.join("report.html"), Format::Html), (out.join("report.md"), Format::Markdown)])
        }
        Some("html" | "htm") => Ok(vec![(out.to_owned(), Format::Html)]),
        Some("md" | "markdown") => Ok(vec![(out.to_owned(), Format::Markdown)]),
        _ => bail!("--out {}: expected a name that ends in .html or .md, or a directory", out.display()),
    }
}

/// Writes a page, and as Markdown its pictures beside it.
///
/// # Errors
/// When the disk is at fault.
pub(crate) fn write(page: &Page, path: &Path, format: Format) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let text = match format {
        Format::Html => render(page)?,
        Format::Markdown => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let page = markdown::render(page, &stem)?;
            for (name, png) in &page.pictures {
                write_file(&dir.join(name), |file| file.write_all(png))?;
            }
            page.text
        }
    };
    Ok(write_file(path, |file| file.write_all(text.as_bytes()))?)
}

/// The table on a terminal; a star stands behind the best of a column.
fn plain(table: &Table) -> String {
    let row = |row: &Vec<lapidary::report::html::Cell>| -> Vec<String> {
        row.iter().map(|cell| format!("{}{}", cell.text, if cell.best { "*" } else { " " })).collect()
    };
    let head = table.columns.iter().map(|name| format!("{name} ")).collect();
    aligned(&std::iter::once(head).chain(table.rows.iter().map(row)).collect::<Vec<_>>())
}
