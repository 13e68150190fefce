//! `cargo xtask bench`: the work that people do, by this program and by the programs that they use today, in turn in one
//! go; and what the machine could do.

mod contests;
mod page;

use contests::{Contest, Program, Side, contests};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const USAGE: &str = "\
usage: cargo xtask bench --model MODEL.gguf [--reference DIR] [--python PYTHON] [--rounds N] [--threads N]
                         [--only NAME]... [--out FILE.md]

Peers run in PYTHON (python3), which has torch, transformers, accelerate and gguf, and may have sentence-transformers and
llama-cpp-python; a peer that fails is left out, and said to be. DIR is the PyTorch GEM that training is compared with.
--only replaces the page by a part of it. An idle machine, please.";

/// What the command line says.
pub(crate) struct Options {
    model: PathBuf,
    reference: Option<PathBuf>,
    python: String,
    rounds: usize,
    threads: usize,
    only: Vec<String>,
    out: PathBuf,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self {
            model: PathBuf::new(),
            reference: None,
            python: "python3".into(),
            rounds: 3,
            threads: 1,
            only: Vec::new(),
            out: "docs/benchmarks.md".into(),
        };
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            let value = rest.next().ok_or_else(|| format!("{flag}: expected a value\n{USAGE}"))?;
            let number =
                || value.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(|| format!("{flag}: expected a number"));
            match flag.as_str() {
                "--model" => options.model = value.into(),
                "--reference" => options.reference = Some(value.into()),
                "--python" => options.python = value.clone(),
                "--rounds" => options.rounds = number()?,
                "--threads" => options.threads = number()?,
                "--only" => options.only.push(value.clone()),
                "--out" => options.out = value.into(),
                _ => return Err(format!("unknown flag {flag}\n{USAGE}")),
            }
        }
        if options.model.as_os_str().is_empty() {
            return Err(USAGE.into());
        }
        if !options.model.is_file() {
            return Err(format!("--model {}: no such file\n{USAGE}", options.model.display()));
        }
        Ok(options)
    }
}

/// One repetition of a piece of work.
#[derive(Debug, Clone)]
struct Measured {
    items: f64,
    cpu_secs: f64,
    wall_secs: f64,
    flops: f64,
    peak_mib: f64,
    /// How a peer was built, where that matters and it says so.
    build: Option<String>,
}

/// A side, and the mean repetition of each of its rounds.
struct Entry {
    side: Side,
    rounds: Vec<Measured>,
}

/// Runs the benchmark and writes its page.
///
/// # Errors
/// On wrong arguments, and when our own side fails.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    let work = root.join("target/bench");
    std::fs::create_dir_all(&work).map_err(|error| format!("{}: {error}", work.display()))?;
    super::cargo(&["build", "--release", "-p", "lapidary", "--example", "workload"])?;
    super::cargo(&["build", "--release", "-p", "lapidary-kernels", "--example", "peak"])?;
    let all = contests(&work, root)?;
    if let Some(unknown) = options.only.iter().find(|name| all.iter().all(|contest| contest.name != **name)) {
        let names: Vec<&str> = all.iter().map(|contest| contest.name).collect();
        return Err(format!("--only {unknown}: expected one of {}", names.join(", ")));
    }
    let hf = dequantised(&work, root, &options)?;
    let peak = rates(root, &options)?;
    let mut results = Vec::new();
    for contest in all {
        if options.only.is_empty() || options.only.iter().any(|name| *name == contest.name) {
            let entries = compare(&contest, root, &options, &hf);
            results.push((contest, entries?));
        }
    }
    let page = page::page(&peak, &results, &options);
    let out = root.join(&options.out);
    std::fs::write(&out, &page).map_err(|error| format!("{}: {error}", out.display()))?;
    println!("{page}");
    Ok(())
}

/// What the machine does, and its products by us and by torch: the best of each over the rounds, in which they take turns.
fn rates(root: &Path, options: &Options) -> Result<Value, String> {
    let mut best = serde_json::Map::new();
    for _ in 0..options.rounds {
        let ours = output(&example(root, "peak"), &[], options)?;
        let peers = output(&options.python, &[&peers(root), "products"], options).unwrap_or_else(|error| {
            eprintln!("torch's products: {error}");
            String::new()
        });
        for (name, rate) in parse(&(ours + &peers))?.iter().filter_map(Value::as_object).flatten() {
            let known = best.entry(name.clone()).or_insert_with(|| rate.clone());
            if rate.as_f64() > known.as_f64() {
                *known = rate.clone();
            }
        }
    }
    Ok(Value::Object(best))
}

/// The model's weights as transformers reads them, made once for each file.
fn dequantised(work: &Path, root: &Path, options: &Options) -> Result<PathBuf, String> {
    let model = &options.model;
    let bytes = std::fs::metadata(model).map_err(|error| format!("{}: {error}", model.display()))?.len();
    let name = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (whole, part) = (work.join(format!("{name}-{bytes}")), work.join("part"));
    if !whole.is_dir() {
        let (model, out) = (model.display().to_string(), part.display().to_string());
        output(&options.python, &[&peers(root), "convert", &model, &out], options)?;
        std::fs::rename(&part, &whole).map_err(|error| format!("{}: {error}", whole.display()))?;
    }
    Ok(whole)
}

/// Every side of a contest in turn, as often as there are rounds; peers that fail are told and left out.
fn compare(contest: &Contest, root: &Path, options: &Options, hf: &Path) -> Result<Vec<Entry>, String> {
    let mut rounds: BTreeMap<usize, Vec<Measured>> = BTreeMap::new();
    let mut failed = vec![false; contest.sides.len()];
    for round in 0..options.rounds {
        for (number, side) in contest.sides.iter().enumerate() {
            if failed[number] {
                continue;
            }
            eprintln!("{}, round {} of {}: {}", contest.name, round + 1, options.rounds, side.name);
            match measure(side, root, options, hf) {
                Ok(measured) => rounds.entry(number).or_default().push(measured),
                Err(error) if matches!(side.program, Program::Ours) => return Err(error),
                Err(error) => {
                    eprintln!("{}: left out: {error}", side.name);
                    failed[number] = true;
                    rounds.remove(&number);
                }
            }
        }
    }
    let entry = |(number, rounds): (usize, _)| Entry { side: contest.sides[number].clone(), rounds };
    Ok(rounds.into_iter().map(entry).collect())
}

fn measure(side: &Side, root: &Path, options: &Options, hf: &Path) -> Result<Measured, String> {
    let mut job = side.job.clone();
    job["model"] = json!(options.model);
    job["hf"] = json!(hf);
    if let Some(reference) = &options.reference {
        job["reference"] = json!(reference);
    }
    let job = job.to_string();
    let text = match &side.program {
        Program::Ours => output(&example(root, "workload"), &[&job], options)?,
        Program::Peer("reference") if options.reference.is_none() => return Err("no --reference".into()),
        Program::Peer(peer) => output(&options.python, &[&peers(root), peer, &job], options)?,
    };
    let repetitions: Vec<Measured> = parse(&text)?.iter().map(measured).collect();
    let Some(last) = repetitions.last().cloned() else { return Err(format!("{}: nothing was measured", side.name)) };
    let mean = |of: fn(&Measured) -> f64| repetitions.iter().map(of).sum::<f64>() / repetitions.len() as f64;
    Ok(Measured { cpu_secs: mean(|one| one.cpu_secs), wall_secs: mean(|one| one.wall_secs), ..last })
}

fn measured(line: &Value) -> Measured {
    let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
    Measured {
        items: number("items"),
        cpu_secs: number("cpu_secs"),
        wall_secs: number("wall_secs"),
        flops: number("flops"),
        peak_mib: number("peak_mib"),
        build: line["build"].as_str().map(str::to_owned),
    }
}

fn parse(text: &str) -> Result<Vec<Value>, String> {
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))).collect()
}

fn example(root: &Path, name: &str) -> String {
    root.join("target/release/examples").join(name).display().to_string()
}

fn peers(root: &Path) -> String {
    root.join("scripts/bench_peers.py").display().to_string()
}

/// What a program prints, with so many threads as the options say.
fn output(program: &str, arguments: &[&str], options: &Options) -> Result<String, String> {
    let threads = options.threads.to_string();
    let output = Command::new(program)
        .args(arguments)
        .env("RAYON_NUM_THREADS", &threads)
        .env("OMP_NUM_THREADS", &threads)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program}: {}: {}", output.status, told.lines().last().unwrap_or_default()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
