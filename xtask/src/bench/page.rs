//! The page of a benchmark.

use super::contests::Contest;
use super::{Entry, Measured, Options};
use serde_json::Value;
use std::fmt::Write as _;

/// Least, median and most.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    let median = if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
    (values[0], median, values[values.len() - 1])
}

fn median(rounds: &[Measured], value: impl Fn(&Measured) -> f64) -> f64 {
    spread(rounds.iter().map(value).collect()).1
}

/// How often as much a side does as the first in the same time, round by round.
fn ratio(first: &[Measured], side: &[Measured], secs: impl Fn(&Measured) -> f64) -> String {
    let rate = |measured: &Measured| measured.items / secs(measured);
    let ratios = first.iter().zip(side).map(|(first, side)| rate(first) / rate(side)).collect();
    let (least, median, most) = spread(ratios);
    format!("{median:.2} ({least:.2} to {most:.2})")
}

fn rate(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// The page as Markdown.
pub(super) fn page(peak: &Value, results: &[(Contest, Vec<Entry>)], options: &Options) -> String {
    let mut page = String::from("# Benchmarks\n\n");
    let threads = options.threads;
    let _ = writeln!(
        page,
        "Written by `cargo xtask bench`: {} rounds, in each of which every side runs once, {threads} thread{} each. A ratio is \
         how often as many items ours (the first side) does in the same CPU time, or wall time: median, least and most over \
         the rounds. The last column counts products with weights alone, of training those of the forward \
         pass, of each row also what ran once for several. {}.\n",
        options.rounds,
        if threads == 1 { "" } else { "s" },
        machine()
    );
    page.push_str("## The machine\n\n| what | rate |\n|---|--:|\n");
    for (name, value) in peak.as_object().into_iter().flatten().filter(|(name, _)| *name != "threads") {
        let value = value.as_f64().unwrap_or(0.0) / 1e9;
        let unit = if name.ends_with("bytes") { "GB/s" } else { "GFLOP/s" };
        let _ = writeln!(page, "| {} | {value:.0} {unit} |", name.replace('_', " "));
    }
    let best = peak.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("product"));
    let best = best.filter_map(|(_, value)| value.as_f64()).fold(0.0, f64::max);
    for (contest, entries) in results {
        let _ = write!(
            page,
            "\n## {}\n\n`{}`\n\n| | {items} per CPU second | {items} per second | CPU ratio | wall ratio | peak MiB | of the best \
             product |\n|---|--:|--:|--:|--:|--:|--:|\n",
            contest.what,
            contest.name,
            items = contest.items
        );
        for entry in entries {
            let (first, rounds) = (&entries[0].rounds, &entry.rounds);
            let flops = median(rounds, |measured| measured.flops / measured.wall_secs);
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {:.0} | {} |",
                entry.side.name,
                rate(median(rounds, |measured| measured.items / measured.cpu_secs)),
                rate(median(rounds, |measured| measured.items / measured.wall_secs)),
                ratio(first, rounds, |measured| measured.cpu_secs),
                ratio(first, rounds, |measured| measured.wall_secs),
                median(rounds, |measured| measured.peak_mib),
                if flops > 0.0 { format!("{:.0} %", 100.0 * flops / best) } else { "–".into() }
            );
        }
        for entry in entries {
            if let Some(build) = entry.rounds.first().and_then(|measured| measured.build.as_ref()) {
                let _ = writeln!(page, "\n{}: {build}", entry.side.name);
            }
        }
    }
    page
}

/// The processor, as the system names it.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(": ").nth(1));
    let flags = field("flags").unwrap_or_default();
    let units: Vec<&str> = ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"]
        .into_iter()
        .filter(|unit| flags.contains(unit))
        .collect();
    format!("{} with {}", field("model name").unwrap_or("a processor without a name"), units.join(", "))
}
