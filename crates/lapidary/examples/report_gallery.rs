//! Writes every plot and an example page into a directory, to look at:
//! `cargo run --example report_gallery -- DIR`.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use lapidary::report::bars::{Series, bar_comparison};
use lapidary::report::curves::{LossPoint, Reference, loss_curves, validation_curve};
use lapidary::report::heat_map::similarity_heat_map;
use lapidary::report::html::{Block, Cell, Check, Figure, Page, Section, Table, render};
use lapidary::report::runs::run_scores;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("expected a directory")?);
    fs::create_dir_all(&directory)?;
    let figures = [
        ("losses", losses()?),
        ("validation", validation()?),
        ("bars", bars()?),
        ("runs", runs()?),
        ("similarity", similarity()?),
    ];
    let mut blocks = example_blocks();
    for (name, png) in figures {
        fs::write(directory.join(format!("{name}.png")), &png)?;
        blocks.push(Block::Figure(Figure {
            png,
            caption: format!("The plot `{name}` with made-up numbers."),
            alternative: format!("Example of the plot {name}"),
        }));
    }
    let page = Page {
        title: "An example report".to_owned(),
        summary: "Every number here is made up, to show what each part of a page looks like.".to_owned(),
        sections: vec![Section { heading: "All blocks".to_owned(), blocks }],
        footer: "Made by the example `report_gallery`.".to_owned(),
    };
    fs::write(directory.join("report.html"), render(&page)?)?;
    Ok(())
}

/// A wave that looks like measurement noise, in -1..=1.
fn noise(step: u64, seed: f64) -> f64 {
    let step = step as f64;
    ((step * 12.9898 + seed).sin() * 43_758.545).sin()
}

fn losses() -> Result<Vec<u8>, Box<dyn Error>> {
    let points: Vec<LossPoint> = (1..=640)
        .map(|step| {
            let decay = (-(step as f64) / 120.0).exp();
            LossPoint {
                step,
                next_token: Some(3.1 + 2.4 * decay + 0.25 * noise(step, 1.0)),
                contrastive: Some(0.06 + 3.2 * decay * decay + 0.04 * noise(step, 2.0).abs()),
                alignment: None,
                similarity: Some(0.1 + 0.6 * decay + 0.03 * noise(step, 3.0)),
            }
        })
        .collect();
    Ok(loss_curves("Losses over 640 steps", &points)?)
}

fn validation() -> Result<Vec<u8>, Box<dyn Error>> {
    let points: Vec<(u64, f64)> = (0..=16)
        .map(|index| {
            let step = index * 40;
            let gain = 40.0 * (1.0 - (-(step as f64) / 90.0).exp());
            (step, 38.2 + gain + 0.6 * noise(step, 3.0) - step as f64 / 400.0)
        })
        .collect();
    let references = [Reference { name: "best training-free method".to_owned(), value: 71.9 }];
    let title = "STSBenchmark validation, Spearman × 100";
    Ok(validation_curve(title, &points, &references)?)
}

fn bars() -> Result<Vec<u8>, Box<dyn Error>> {
    let groups = ["STSBenchmark test", "SICK-R", "STS17 en-en", "Banking77 accuracy"];
    let series = [
        ("baseline A", [41.2, 47.9, 54.0, 55.1]),
        ("baseline B", [48.8, 52.6, 62.3, 58.7]),
        ("baseline C", [57.3, 58.1, 69.9, 60.2]),
        ("baseline D", [70.3, 67.2, 80.1, 63.4]),
        ("trained", [75.4, 70.6, 83.7, 71.8]),
    ];
    let groups = groups.map(str::to_owned);
    let series = series.map(|(name, values)| Series { name: name.to_owned(), values: values.map(Some).to_vec() });
    Ok(bar_comparison("Embedding quality before and after", &groups, &series)?)
}

fn runs() -> Result<Vec<u8>, Box<dyn Error>> {
    let variants = ["one thing", "another", "a third, with a name that is long enough to be cut somewhere"];
    let runs = [[76.0, 76.9, 77.1], [79.5, 79.6, 79.4], [81.4, 79.9, 80.8]].map(|runs| runs.to_vec());
    Ok(run_scores("Three seeds of each", &variants.map(str::to_owned), &runs)?)
}

fn similarity() -> Result<Vec<u8>, Box<dyn Error>> {
    let labels = [
        "A man is playing a guitar on the stage.",
        "Someone plays music on a stringed instrument in front of a large crowd of people.",
        "The central bank raised its interest rate by a quarter of a point.",
        "Borrowing money will cost more after the decision of the monetary authority.",
        "Two dogs run over the beach.",
        "¿Dónde está la biblioteca? Füße, naïve, Ελληνικά, Привет",
        "Puppies chase each other along the shore of the sea while their owners watch them from a \
         bench and talk about the weather of the coming week.",
        "Stop!",
    ]
    .map(str::to_owned);
    let count = labels.len();
    let matrix: Vec<f32> = (0..count * count)
        .map(|index| {
            let (row, column) = (index / count, index % count);
            match row.abs_diff(column) {
                0 => 1.0,
                1 if row.min(column).is_multiple_of(2) => 0.78,
                gap => 0.35 - 0.09 * gap as f32,
            }
        })
        .collect();
    Ok(similarity_heat_map("Similarity of example sentences", &labels, &matrix)?)
}

fn example_blocks() -> Vec<Block> {
    let row = |cells: [&str; 4]| cells.map(Cell::new).to_vec();
    let mut best = row(["trained", "75.4", "83.7", "71.8"]);
    for cell in &mut best[1..] {
        *cell = cell.clone().best();
    }
    let fact = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        Block::Facts(vec![
            fact("base model", "a small one"),
            fact("adapter scope", "special"),
            fact("rows", "4,096"),
            fact("wall time", "6 min 12 s"),
            fact("peak memory", "1.3 GiB"),
        ]),
        Block::Paragraph("A paragraph with <markup> & signs that must be shown as they are.".into()),
        Block::Table(Table {
            caption: "Spearman × 100, accuracy × 100".to_owned(),
            columns: ["method", "STSBenchmark", "STS17", "Banking77"].map(str::to_owned).to_vec(),
            groups: vec![(String::new(), 1), ("similarity".to_owned(), 2), ("classification".to_owned(), 1)],
            rows: vec![row(["baseline A", "41.2", "54.0", "55.1"]), row(["baseline D", "70.3", "80.1", "–"]), best],
        }),
        Block::Checks(vec![
            Check {
                name: "Chat is untouched".to_owned(),
                passed: true,
                explanation: "Logits of 16 chat rows are bit-equal to the base model's.".to_owned(),
            },
            Check {
                name: "Perplexity has not moved".to_owned(),
                passed: false,
                explanation: "Expected 17.31, found 17.58.".to_owned(),
            },
        ]),
        Block::Preformatted {
            caption: "A reply, word for word".to_owned(),
            text: "> What is a gem?\nA gem is a <cut> and polished stone.\n\n    indented".to_owned(),
        },
    ]
}
