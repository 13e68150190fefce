//! What a sweep has to show: tables on the terminal, and with their pictures as a page.

use super::Scores;
use crate::commands::eval::reconstruct::{Losses, Retention};
use crate::commands::report;
use crate::context::Context;
use crate::progress;
use crate::table::aligned;
use anyhow::{Result, bail};
use lapidary::report::ReportError;
use lapidary::report::bars::{Series, bar_comparison};
use lapidary::report::html::{Block, Cell, Figure, Page, Section, Table};
use lapidary::report::lines::line_comparison;
use lapidary::report::runs::run_scores;
use std::io::{Write as _, stdout};
use std::path::Path;

/// Mean and standard deviation (of a sample, 0 for one).
fn mean_sd(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// The figures of one score, run by run.
fn figures_at(runs: &[Scores], at: usize) -> Vec<f64> {
    runs.iter().map(|run| run.figures[at].1).collect()
}

/// Bars of all scores where each variant ran once and they can be told apart; else a picture for each score, or of
/// the mean, with a dot for each run.
fn pictures(all: &[(String, Vec<Scores>)], names: &[String], num_runs: usize) -> Result<Vec<Block>, ReportError> {
    let variants: Vec<String> = all.iter().map(|(variant, _)| variant.clone()).collect();
    let figure = |png, alternative: String| Block::Figure(Figure { png, caption: String::new(), alternative });
    let picture = |(at, name): (usize, &String)| {
        let runs: Vec<Vec<f64>> = all.iter().map(|(_, runs)| figures_at(runs, at)).collect();
        Ok(figure(run_scores(name, &variants, &runs)?, format!("{name}: a dot for each run, a bar at the mean.")))
    };
    if num_runs == 1 {
        let values = |at: usize| all.iter().map(|(_, runs)| figures_at(runs, at).first().copied()).collect();
        let series: Vec<Series> =
            names.iter().enumerate().map(|(at, name)| Series { name: name.clone(), values: values(at) }).collect();
        return match bar_comparison("Scores by variant", &variants, &series) {
            Ok(png) => Ok(vec![figure(png, "A bar for each score of each variant, as in the table.".into())]),
            Err(ReportError::TooMany { .. }) => {
                let mean = names.iter().position(|name| name.starts_with("mean of ")).unwrap_or(0);
                Ok(vec![picture((mean, &names[mean]))?])
            }
            Err(error) => Err(error),
        };
    }
    names.iter().enumerate().map(picture).collect()
}

/// The table on the terminal, and with its pictures as a page.
pub(super) fn finish(title: &str, all: &[(String, Vec<Scores>)], out: &Path, context: &Context) -> Result<()> {
    let figures = |run: &Scores| run.figures.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    // Every run measures the same, in the same order.
    let names = all.iter().flat_map(|(_, runs)| runs).next().map(figures).unwrap_or_default();
    if let Some(other) = all.iter().flat_map(|(_, runs)| runs).map(figures).find(|other| *other != names) {
        bail!("expected every run to be measured on {names:?}, found one on {other:?}");
    }
    let columns: Vec<String> = std::iter::once("variant".to_owned())
        .chain(names.iter().cloned())
        .chain(["training CPU seconds".into()])
        .collect();
    let mut rows = Vec::new();
    for (variant, runs) in all {
        let mut row = vec![variant.clone()];
        for at in 0..names.len() {
            let (mean, sd) = mean_sd(&figures_at(runs, at));
            row.push(if runs.len() > 1 { format!("{mean:.2} ± {sd:.2}") } else { format!("{mean:.2}") });
        }
        let cpu_secs: Option<Vec<f64>> = runs.iter().map(|run| run.cpu_secs).collect();
        let cpu_secs = cpu_secs.map(|secs| progress::grouped(mean_sd(&secs).0.round() as u64));
        row.push(cpu_secs.unwrap_or_else(|| "–".into()));
        rows.push(row);
    }
    let num_runs = all.iter().map(|(_, runs)| runs.len()).max().unwrap_or(0);
    let seeds = match num_runs {
        1 => "One run each.".into(),
        n => format!("Means of {n} seeds ± the standard deviation of a sample."),
    };
    let mut tables = vec![std::iter::once(columns).chain(rows).collect::<Vec<_>>()];
    let mut blocks = vec![table(seeds, &tables[0])];
    if !names.is_empty() {
        match pictures(all, &names, num_runs) {
            Ok(pictures) => blocks.extend(pictures),
            Err(error) => context.note(&format!("no picture: {error}")),
        }
    }
    let mut sections = vec![Section { heading: "Scores".into(), blocks }];
    for kept in Kept::ALL {
        let (rows, picture) = match kept.by_length(all) {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(error) => {
                context.note(&format!("{}: left out: {error:#}", kept.heading));
                continue;
            }
        };
        let mut blocks = vec![table(kept.caption.into(), &rows)];
        match picture {
            Ok(png) => blocks.push(Block::Figure(Figure {
                png,
                caption: String::new(),
                alternative: format!("{}: a line for each variant over the lengths, as in the table.", kept.heading),
            })),
            Err(error) => context.note(&format!("no picture: {error}")),
        }
        sections.push(Section { heading: kept.heading.into(), blocks });
        tables.push(rows);
    }
    let page = Page { title: title.to_owned(), sections, ..Page::default() };
    for (path, format) in report::outputs(&out.join(""))? {
        report::write(&page, &path, format)?;
        context.note(&format!("report: {}", path.display()));
    }
    let shown: Vec<String> = tables.iter().map(|table| aligned(table)).collect();
    Ok(stdout().lock().write_all(shown.join("\n").as_bytes())?)
}

fn table(caption: String, rows: &[Vec<String>]) -> Block {
    Block::Table(Table {
        caption,
        columns: rows[0].clone(),
        rows: rows[1..].iter().map(|row| row.iter().map(Cell::new).collect()).collect(),
        ..Table::default()
    })
}

/// One figure of what special tokens keep, over the lengths of texts.
struct Kept {
    heading: &'static str,
    caption: &'static str,
    value: fn(&Retention) -> f64,
    /// The losses without special tokens, where it is one.
    losses: Option<fn(&Retention) -> Losses>,
}

impl Kept {
    const ALL: [Self; 3] = [
        Self {
            heading: "The text again",
            caption: "Nats a token given the special tokens, by the tokens of the text.",
            value: |at| at.reconstruction_loss.special_tokens,
            losses: Some(|at| at.reconstruction_loss),
        },
        Self {
            heading: "Its second half after the first",
            caption: "Nats a token given the special tokens, by the tokens of the text.",
            value: |at| at.continuation_loss.special_tokens,
            losses: Some(|at| at.continuation_loss),
        },
        Self {
            heading: "Tokens of the text that are written again",
            caption: "F1 of the tokens written greedily, times 100, by the tokens of the text.",
            value: |at| 100.0 * at.token_f1,
            losses: None,
        },
    ];

    /// The table, and a line for each variant; none where retention was not measured. What the model has without special
    /// tokens is shown where it is the same for all, as that of one base model is.
    #[expect(clippy::type_complexity, reason = "a table and a picture that may fail")]
    fn by_length(
        &self,
        all: &[(String, Vec<Scores>)],
    ) -> Result<Option<(Vec<Vec<String>>, Result<Vec<u8>, ReportError>)>> {
        let kept = |run: &Scores| run.retention.as_ref().map(|(_, kept)| kept.clone()).unwrap_or_default();
        let runs = |runs: &[Scores]| runs.iter().map(kept).collect::<Vec<_>>();
        let mut all: Vec<(&String, Vec<Vec<Retention>>)> = all.iter().map(|(name, of)| (name, runs(of))).collect();
        // Methods without special tokens have none.
        all.retain(|(_, runs)| runs.iter().all(|run| !run.is_empty()));
        let lengths = |run: &[Retention]| run.iter().map(|at| at.num_tokens).collect::<Vec<_>>();
        let Some(first) = all.iter().flat_map(|(_, runs)| runs).next().map(|run| lengths(run)) else { return Ok(None) };
        let every = || all.iter().flat_map(|(_, runs)| runs);
        if let Some(other) = every().map(|run| lengths(run)).find(|other| *other != first) {
            bail!("expected every run to be measured at lengths {first:?}, found one at {other:?}");
        }
        let places: Vec<String> = first.iter().map(|length| format!("{length} tokens")).collect();
        let mut rows = vec![std::iter::once("variant".to_owned()).chain(places.iter().cloned()).collect::<Vec<_>>()];
        let mut lines = Vec::new();
        for (variant, runs) in &all {
            let values: Vec<(f64, f64)> = (0..first.len())
                .map(|at| mean_sd(&runs.iter().map(|run| (self.value)(&run[at])).collect::<Vec<_>>()))
                .collect();
            let cell = |&(mean, sd): &(f64, f64)| {
                if runs.len() > 1 { format!("{mean:.2} ± {sd:.2}") } else { format!("{mean:.2}") }
            };
            rows.push(std::iter::once((*variant).clone()).chain(values.iter().map(cell)).collect());
            let values = values.iter().map(|(mean, _)| Some(*mean)).collect();
            lines.push(Series { name: (*variant).clone(), values });
        }
        let mut references = Vec::new();
        if let Some(losses) = self.losses {
            let givens: [(&str, fn(Losses) -> f64); 2] =
                [("given nothing", |losses| losses.nothing), ("given the text", |losses| losses.text)];
            for (name, given) in givens {
                let of = |run: &[Retention]| run.iter().map(|at| given(losses(at))).collect::<Vec<f64>>();
                let values = of(&all[0].1[0]);
                if every().all(|run| of(run) == values) {
                    rows.push(
                        std::iter::once(name.to_owned()).chain(values.iter().map(|x| format!("{x:.2}"))).collect(),
                    );
                    references.push(Series { name: name.into(), values: values.into_iter().map(Some).collect() });
                }
            }
        }
        Ok(Some((rows, line_comparison(self.heading, &places, &lines, &references))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_deviations() {
        assert_eq!((mean_sd(&[1.0, 2.0, 3.0]), mean_sd(&[5.0])), ((2.0, 1.0), (5.0, 0.0)));
    }
}
