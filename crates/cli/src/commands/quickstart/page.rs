//! What the quickstart tells: a table in the terminal, report.html and its plots.

use super::Findings;
use crate::table::aligned;
use anyhow::{Context as _, Result};
use lapidary::output::atomic::write_file;
use lapidary::report::bars::{Series, bar_comparison};
use lapidary::report::curves::loss_curves;
use lapidary::report::heat_map::similarity_heat_map;
use lapidary::report::html::{Block, Cell, Check, Figure, Page, Section, Table, render};
use std::io::Write as _;
use std::path::Path;

/// Sentences of three subjects, to look at their similarities.
pub(super) const EXAMPLES: [&str; 9] = [
    "A man is playing a guitar.",
    "Someone makes music on stage.",
    "She practises the violin every day.",
    "The bank raised its interest rates.",
    "Shares fell after the report.",
    "The company made a profit this year.",
    "The cat sleeps on the sofa.",
    "Dogs chase balls in the park.",
    "A bird built its nest in our tree.",
];

/// The peak of this process's memory, MiB, where the system tells it.
fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

fn facts(findings: &Findings, secs: f64) -> Vec<(String, String)> {
    let mut facts = vec![
        ("Rows trained on".to_owned(), findings.rows.to_string()),
        ("Training time".to_owned(), format!("{:.1} min", findings.train_secs / 60.0)),
        ("Time in all".to_owned(), format!("{:.1} min", secs / 60.0)),
    ];
    facts.extend(peak_memory_mib().map(|mib| ("Peak memory".to_owned(), format!("{mib:.0} MiB"))));
    facts
}

fn heads(findings: &Findings) -> Vec<String> {
    let sets = findings.methods.first().map_or(&[][..], |m| &m.sets);
    let both = sets.iter().flat_map(|(set, ..)| [format!("{set} raw"), format!("{set} standardised")]);
    std::iter::once("method".to_owned()).chain(both).collect()
}

pub(super) fn print(findings: &Findings, secs: f64) {
    let mut rows = vec![heads(findings)];
    for method in &findings.methods {
        let scores = method.sets.iter().flat_map(|(_, raw, std)| [format!("{raw:.2}"), format!("{std:.2}")]);
        rows.push(std::iter::once(method.name.clone()).chain(scores).collect());
    }
    println!("\nEmbedding quality (Spearman x 100)\n{}", aligned(&rows));
    let mut rows = vec![["measure", "before", "after"].map(str::to_owned).to_vec()];
    if let Some((before, after)) = findings.banking {
        rows.push(vec![
            "Banking77 accuracy, part (before: prompt-eol)".into(),
            format!("{before:.2}"),
            format!("{after:.2}"),
        ]);
    }
    rows.extend(
        findings
            .knowledge
            .iter()
            .map(|(name, before, after)| vec![name.clone(), format!("{before:.4}"), format!("{after:.4}")]),
    );
    println!("\nOne set of weights, both skills\n{}", aligned(&rows));
    println!();
    for check in &findings.checks {
        println!("{}  {} ({})", if check.passed { "ok    " } else { "FAILED" }, check.name, check.explanation);
    }
    println!("\nAsked:   {}\nReplied: {}", findings.reply.0, findings.reply.1.trim());
    let head: Vec<String> = findings.vectors[0].iter().take(6).map(|x| format!("{x:.4}")).collect();
    println!(
        "Embedding of \"{}\": [{}, ...] ({} numbers)\n",
        findings.sentences[0],
        head.join(", "),
        findings.vectors[0].len()
    );
    for (name, value) in facts(findings, secs) {
        println!("{name}: {value}");
    }
}

fn figures(findings: &Findings) -> Result<Vec<(&'static str, Figure)>> {
    let groups: Vec<String> = findings.methods.iter().map(|m| m.name.clone()).collect();
    let (set, ..) = findings.methods[0].sets.first().context("an STS set is always measured")?;
    let of = |pick: fn(&(String, f64, f64)) -> f64| findings.methods.iter().map(|m| m.sets.first().map(pick)).collect();
    let series = [
        Series { name: "as pooled".into(), values: of(|s| s.1) },
        Series { name: "standardised".into(), values: of(|s| s.2) },
    ];
    let n = findings.vectors.len();
    let cosine =
        |i: usize, j: usize| findings.vectors[i].iter().zip(&findings.vectors[j]).map(|(a, b)| a * b).sum::<f32>();
    let matrix: Vec<f32> = (0..n * n).map(|at| cosine(at / n, at % n)).collect();
    let mut figures = vec![(
        "sts.png",
        Figure {
            png: bar_comparison(&format!("{set}: Spearman x 100 by method"), &groups, &series)?,
            caption: format!("{set}, before and after training; no method but the last was trained."),
            alternative: format!("Bars of the {set} scores of each method, also in the table above."),
        },
    )];
    if findings.losses.len() > 1 {
        figures.push((
            "loss.png",
            Figure {
                png: loss_curves("Training losses", &findings.losses)?,
                caption: "Next-token loss: how well the text is written again from the special tokens alone. Contrastive loss: how well a text is told from the others of its batch.".into(),
                alternative: "Curves of the losses over the steps.".into(),
            },
        ));
    }
    figures.push((
        "similarity.png",
        Figure {
            png: similarity_heat_map("Cosine similarity", &findings.sentences, &matrix)?,
            caption: "Nine sentences of three subjects, embedded by the GEM.".into(),
            alternative: "Heat map of the cosine similarities of nine sentences.".into(),
        },
    ));
    Ok(figures)
}

pub(super) fn write(findings: &Findings, out: &Path, secs: f64) -> Result<()> {
    let figures = figures(findings)?;
    for (name, figure) in &figures {
        let path = out.join(name);
        write_file(&path, |file| file.write_all(&figure.png))?;
    }
    let best = |column: usize| {
        let scores = findings
            .methods
            .iter()
            .map(|m| m.sets.iter().flat_map(|(_, raw, std)| [*raw, *std]).nth(column).unwrap_or(f64::MIN));
        scores.fold(f64::MIN, f64::max)
    };
    let row = |method: &super::MethodScore| {
        let cells = method.sets.iter().flat_map(|(_, raw, std)| [*raw, *std]).enumerate().map(|(i, score)| {
            let cell = Cell::new(format!("{score:.2}"));
            if score >= best(i) { cell.best() } else { cell }
        });
        std::iter::once(Cell::new(&method.name)).chain(cells).collect()
    };
    let sts = Table {
        caption: "Spearman x 100".into(),
        columns: heads(findings),
        rows: findings.methods.iter().map(row).collect(),
        ..Table::default()
    };
    let mut knowledge: Vec<Vec<Cell>> = Vec::new();
    if let Some((before, after)) = findings.banking {
        let name = "Banking77 accuracy, part of the test (before: prompt-eol)";
        knowledge.push(vec![Cell::new(name), Cell::new(format!("{before:.2}")), Cell::new(format!("{after:.2}"))]);
    }
    for (name, before, after) in &findings.knowledge {
        knowledge.push(vec![Cell::new(name), Cell::new(format!("{before:.4}")), Cell::new(format!("{after:.4}"))]);
    }
    let columns = ["measure", "before", "after"].map(str::to_owned).to_vec();
    let knowledge = Table { caption: "Before and after".into(), columns, rows: knowledge, ..Table::default() };
    let checks = findings
        .checks
        .iter()
        .map(|c| Check { name: c.name.clone(), passed: c.passed, explanation: c.explanation.clone() })
        .collect();
    let mut quality = vec![Block::Table(sts)];
    quality.extend(figures.into_iter().map(|(_, figure)| Block::Figure(figure)));
    let page = Page {
        title: "A GEM, and what it cost".into(),
        summary: "One set of weights that chats as before and embeds as never before: what was measured before and after training.".into(),
        sections: vec![
            Section { heading: "This run".into(), blocks: vec![Block::Facts(facts(findings, secs))] },
            Section { heading: "Embedding quality".into(), blocks: quality },
            Section { heading: "What the model knew".into(), blocks: vec![Block::Table(knowledge), Block::Checks(checks)] },
            Section {
                heading: "A reply from the same weights".into(),
                blocks: vec![Block::Preformatted { caption: findings.reply.0.clone(), text: findings.reply.1.trim().to_owned() }],
            },
        ],
        footer: format!("Written by lapidary {}.", env!("CARGO_PKG_VERSION")),
    };
    let html = render(&page)?;
    Ok(write_file(&out.join("report.html"), |file| file.write_all(html.as_bytes()))?)
}
