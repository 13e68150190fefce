//! Result files of tasks, in the layouts of the mteb package and of lm-evaluation-harness.

use crate::fetch::data_sets::subset_of;
use crate::progress;
use anyhow::Result;
use lapidary::eval::task::{TaskKind, TaskScore};
use serde_json::{Map, Value, json};

/// The version of the `mteb` package whose result files these are laid out as.
const MTEB_VERSION: &str = "2.26.24";

/// A finished task, as the table shows it.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) kind: TaskKind,
    pub(super) metric: String,
    pub(super) value: f64,
    pub(super) note: String,
}

/// The file of a result: as the `mteb` package writes it, and for language tasks as lm-evaluation-harness does.
pub(super) fn result(
    name: &str,
    kind: TaskKind,
    score: &TaskScore,
    (truncated, secs): (usize, f64),
    limit: usize,
) -> Result<Value> {
    let rounded = |value: f64| (value * 1e6).round() / 1e6;
    if kind.is_embedding() {
        let mut scores: Map<String, Value> =
            score.metrics.iter().map(|(name, value)| ((*name).to_owned(), json!(rounded(*value)))).collect();
        scores.insert("main_score".into(), json!(rounded(score.metrics[0].1)));
        scores.insert("hf_subset".into(), json!(subset_of(name)?));
        scores.insert("languages".into(), json!(["eng-Latn"]));
        return Ok(json!({
            "task_name": name,
            "mteb_version": MTEB_VERSION,
            "scores": { score.split: [scores] },
            "evaluation_time": secs,
            "kg_co2_emissions": null,
            "num_scored": score.num_scored,
            "num_truncated": truncated,
        }));
    }
    let metrics: Map<String, Value> =
        score.metrics.iter().map(|(name, value)| (format!("{name},none"), json!(value))).collect();
    Ok(json!({
        "results": { name: metrics },
        "n-samples": { name: { "effective": score.num_scored } },
        "main_metric": format!("{},none", score.metrics[0].0),
        "config": { "model": "lapidary", "limit": limit },
        "total_evaluation_time_seconds": secs,
    }))
}

/// What a file of a result says; none if it is none.
pub(super) fn row_of(name: &str, kind: TaskKind, stored: &Value) -> Option<Row> {
    let (metric, value, note) = if kind.is_embedding() {
        let scores = stored.get("scores")?.as_object()?.values().next()?.get(0)?;
        let main = scores.get("main_score")?.as_f64()?;
        // The metric that the main score repeats.
        let metrics = ["cosine_spearman", "accuracy", "v_measure", "ndcg_at_10", "map_at_1000", "max_ap"];
        let metric = metrics.iter().find(|metric| scores.get(**metric).and_then(Value::as_f64) == Some(main))?;
        let truncated = stored.get("num_truncated")?.as_u64()?;
        let note = if truncated > 0 { format!("{} texts cut", progress::grouped(truncated)) } else { String::new() };
        ((*metric).to_owned(), 100.0 * main, note)
    } else {
        let metric = stored.get("main_metric")?.as_str()?;
        let value = stored.get("results")?.get(name)?.get(metric)?.as_f64()?;
        let scored = stored.get("n-samples")?.get(name)?.get("effective")?.as_u64()?;
        let metric = metric.trim_end_matches(",none").to_owned();
        let scale = if metric == "perplexity" { 1.0 } else { 100.0 };
        (metric, scale * value, format!("of {}", progress::grouped(scored)))
    };
    Some(Row { name: name.to_owned(), kind, metric, value, note })
}
