//! How time and memory grow with the size of the work: runs the example `workload` for each size, in a process of its own,
//! and writes `growth.md` with its plots.
//!
//! `growth TEXTS.txt OUT_DIR MODEL.gguf [MODEL.gguf[=stored]...]`, built beside `workload` in release; texts one a line, 256
//! and more, 8,200 tokens and more; the first model is the one whose sizes vary. With `=stored` a model keeps its file's
//! numbers, else it has bf16. Threads are those of `RAYON_NUM_THREADS`. Whole commands, which take up to an hour, are measured
//! by hand: what OUT_DIR/growth-commands.json has of them becomes part of the page.

use lapidary::report::bars::Series;
use lapidary::report::html::{Block, Cell, Figure, Page, Section, Table};
use lapidary::report::{lines, markdown};
use serde::Deserialize;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};

/// Work of which one size varies.
struct Growth {
    about: About,
    sizes: Vec<usize>,
    job: Box<dyn Fn(usize) -> Value>,
}

#[derive(Deserialize)]
struct About {
    heading: String,
    /// What the size counts.
    size: String,
    /// How the cost grows with it, by the algorithm.
    expected: String,
    #[serde(default)]
    note: String,
}

/// Runs by hand: sizes, CPU seconds, and MiB at the most.
#[derive(Deserialize)]
struct ByHand {
    #[serde(flatten)]
    about: About,
    measured: Vec<(usize, f64, f64)>,
}

fn about(heading: &str, size: &str, expected: &str) -> About {
    About { heading: heading.into(), size: size.into(), expected: expected.into(), note: String::new() }
}

/// One run of a size.
struct Measured {
    size: usize,
    cpu_secs: f64,
    peak_mib: f64,
    /// Floating point operations of products with weights.
    flops: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [texts, out, first, ..] = arguments.as_slice() else {
        return Err("expected TEXTS.txt OUT_DIR MODEL.gguf [MODEL.gguf[=stored]...]".into());
    };
    let path = Path::new(out).join("growth-commands.json");
    let by_hand: Vec<ByHand> = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?,
        Err(error) => {
            eprintln!("no whole commands: {}: {error}", path.display());
            Vec::new()
        }
    };
    let mut sections = Vec::new();
    for growth in all(texts) {
        let mut measured = Vec::new();
        for size in &growth.sizes {
            eprintln!("{}: {size}", growth.about.heading);
            measured.push(Measured { size: *size, ..run(first, (growth.job)(*size))? });
        }
        sections.push(section(&growth.about, &measured)?);
    }
    for ByHand { about, measured } in by_hand {
        let measured = measured.iter().map(|(size, cpu_secs, peak_mib)| Measured {
            size: *size,
            cpu_secs: *cpu_secs,
            peak_mib: *peak_mib,
            flops: 0.0,
        });
        sections.push(section(&about, &measured.collect::<Vec<_>>())?);
    }
    sections.push(models(texts, &arguments[2..])?);
    let page = Page {
        title: "How time and memory grow".into(),
        summary: format!(
            "Written by the example growth of the library: {} with bf16 weights, threads: {}. Each size runs in a process of its \
             own, whose memory is its highest, the loaded model included. An exponent of 1 is linear growth; the plots show the \
             time for one of what is counted, which is then a level line.",
            name(first),
            std::env::var("RAYON_NUM_THREADS").unwrap_or_else(|_| "all".into())
        ),
        sections,
        ..Page::default()
    };
    let page = markdown::render(&page, "growth")?;
    std::fs::write(Path::new(out).join("growth.md"), page.text)?;
    for (name, png) in page.pictures {
        std::fs::write(Path::new(out).join(name), png)?;
    }
    Ok(())
}

fn all(texts: &str) -> Vec<Growth> {
    let powers = |from: u32, to: u32, step: usize| (from..=to).step_by(step).map(|power| 1 << power).collect();
    let texts = texts.to_owned();
    let (of_texts, of_k, of_length) = (texts.clone(), texts.clone(), texts);
    vec![
        Growth {
            about: about("Embedding: texts", "texts", "linear"),
            sizes: powers(4, 8, 1),
            job: Box::new(move |n| json!({"work": "embed", "texts": of_texts, "num_texts": n})),
        },
        Growth {
            about: about(
                "Embedding: special tokens behind each text",
                "special tokens",
                "linear, from the cost of the text on, which they share",
            ),
            sizes: powers(0, 6, 1),
            job: Box::new(move |k| json!({"work": "embed", "texts": of_k, "num_texts": 32, "num_special_tokens": k})),
        },
        Growth {
            about: about("A prompt: length", "tokens", "linear, and quadratic in attention"),
            sizes: powers(5, 13, 2),
            job: Box::new(move |n| json!({"work": "prefill", "texts": of_length, "tokens": n})),
        },
        Growth {
            about: about(
                "A contrastive step: rows of 32 tokens",
                "rows",
                "linear; memory levels out at a micro-batch, but for what the frozen parts keep",
            ),
            sizes: powers(0, 8, 2),
            job: Box::new(
                |n| json!({"work": "train", "scope": "special", "full": false, "rows": n, "tokens": 32, "dropout": "delete"}),
            ),
        },
        Growth {
            about: about("A contrastive step of 8 rows: length", "tokens", "linear, and quadratic in attention"),
            sizes: powers(5, 9, 1),
            job: Box::new(
                |n| json!({"work": "train", "scope": "special", "full": false, "rows": 8, "tokens": n, "dropout": "delete"}),
            ),
        },
    ]
}

/// Runs a job of the example beside this one.
fn run(model: &str, mut job: Value) -> Result<Measured, Box<dyn Error>> {
    let (file, weights) = model.split_once('=').unwrap_or((model, "bf16"));
    job["model"] = json!(file);
    job["weights"] = json!(weights);
    job["repeat"] = json!(1);
    let workload = std::env::current_exe()?.with_file_name("workload");
    let output = Command::new(&workload).arg(job.to_string()).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let line: Value = match text.lines().last() {
        Some(line) if output.status.success() => serde_json::from_str(line)?,
        _ => return Err(format!("{} {job}: {}", workload.display(), output.status).into()),
    };
    let number = |key: &str| line[key].as_f64().ok_or_else(|| format!("{line}: no {key}"));
    Ok(Measured { size: 0, cpu_secs: number("cpu_secs")?, peak_mib: number("peak_mib")?, flops: number("flops")? })
}

/// The slope of the line through the logarithms, by least squares.
fn exponent(sizes: &[usize], values: &[f64]) -> f64 {
    let points: Vec<(f64, f64)> =
        sizes.iter().zip(values).map(|(size, value)| ((*size as f64).ln(), value.ln())).collect();
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let covariance: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    covariance / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}

fn section(about: &About, measured: &[Measured]) -> Result<Section, Box<dyn Error>> {
    let sizes: Vec<usize> = measured.iter().map(|one| one.size).collect();
    let secs: Vec<f64> = measured.iter().map(|one| one.cpu_secs).collect();
    let each: Vec<f64> = measured.iter().map(|one| 1e3 * one.cpu_secs / one.size as f64).collect();
    let row = |i: usize| {
        let since = if i == 0 { "–".into() } else { format!("{:.2}", exponent(&sizes[i - 1..=i], &secs[i - 1..=i])) };
        let memory = format!("{:.0}", measured[i].peak_mib);
        [sizes[i].to_string(), format!("{:.3}", secs[i]), format!("{:.3}", each[i]), since, memory]
            .map(Cell::new)
            .to_vec()
    };
    let columns = [about.size.as_str(), "CPU s", "ms each", "exponent from the size before", "peak MiB"];
    let table = Table {
        columns: columns.map(str::to_owned).to_vec(),
        rows: (0..secs.len()).map(row).collect(),
        ..Table::default()
    };
    let places: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    let series = Series { name: "ms each".into(), values: each.iter().copied().map(Some).collect() };
    let figure = Figure {
        png: lines::line_comparison(&about.heading, &places, &[series], &[])?,
        caption: String::new(),
        alternative: format!("CPU milliseconds for one of the {} by their number.", about.size),
    };
    let fitted = exponent(&sizes, &secs);
    let text =
        format!("By the algorithm: {}. Fitted exponent of all sizes: {fitted:.2}. {}", about.expected, about.note);
    let blocks = vec![Block::Paragraph(text.trim().into()), Block::Table(table), Block::Figure(figure)];
    Ok(Section { heading: about.heading.clone(), blocks })
}

fn models(texts: &str, models: &[String]) -> Result<Section, Box<dyn Error>> {
    let mut rows = Vec::new();
    for model in models {
        eprintln!("models: {model}");
        let prefill = run(model, json!({"work": "prefill", "texts": texts, "tokens": 512}))?;
        let decode = run(model, json!({"work": "decode", "texts": texts, "prompt_tokens": 64, "new_tokens": 64}))?;
        let weights = model.split_once('=').map_or("bf16", |(_, weights)| weights);
        let cells = [
            name(model),
            weights.to_owned(),
            format!("{:.0}", 512.0 / prefill.cpu_secs),
            format!("{:.1}", 64.0 / decode.cpu_secs),
            format!("{:.0}", prefill.flops / prefill.cpu_secs / 1e9),
            format!("{:.0}", decode.flops / decode.cpu_secs / 1e9),
            format!("{:.0}", prefill.peak_mib.max(decode.peak_mib)),
        ];
        rows.push(cells.map(Cell::new).to_vec());
    }
    let columns = [
        "model",
        "weights",
        "prompt tokens per CPU s",
        "new tokens per CPU s",
        "prompt, GFLOP/s",
        "new tokens, GFLOP/s",
        "peak MiB",
    ];
    let table = Table { columns: columns.map(str::to_owned).to_vec(), rows, ..Table::default() };
    Ok(Section { heading: "Models".into(), blocks: vec![Block::Table(table)] })
}

fn name(model: &str) -> String {
    let file = model.split_once('=').map_or(model, |(file, _)| file);
    Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
