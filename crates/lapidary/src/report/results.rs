//! Result files of evaluation runs: RESULTS/MODEL/REVISION/TASK.json as the `mteb` package lays them out, the files of
//! language tasks that stand beside them, and those that lm-evaluation-harness writes.

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

const META_FILE: &str = "model_meta.json";
/// Directories between a directory that is named and the result files in it: MODEL/REVISION.
const MAX_DEPTH: usize = 2;
/// A file longer than this is no result.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Names that the English subset of a multilingual set has, those that `MTEB(eng, v2)` chooses first.
const ENGLISH_SUBSETS: [&str; 4] = ["en", "en-en", "eng", "default"];
const TEST: &str = "test";
/// Metrics that are no shares, and better when lower.
const LOWER_IS_BETTER: [&str; 4] = ["perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"];

/// Metrics of a task of lm-evaluation-harness, the one that counts first: by length where that is given, as leaderboards
/// have it.
const MAIN_METRICS: [&str; 6] =
    ["acc_norm,none", "acc,none", "exact_match,none", "word_perplexity,none", "perplexity,none", "bits_per_byte,none"];
/// Tasks of lm-evaluation-harness that are here by another name, and the examples before a question here.
const HARNESS_NAMES: [(&str, u64, &str); 5] = [
    ("mmlu", 5, "MMLU"),
    ("arc_easy", 0, "ARC-Easy"),
    ("arc_challenge", 0, "ARC-Challenge"),
    ("hellaswag", 0, "HellaSwag"),
    ("lambada_openai", 0, "LAMBADA"),
];

/// One model or method, as one revision directory has it.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The model's name, as `model_meta.json` or else its directory says.
    pub name: String,
    /// The name of the revision directory.
    pub revision: String,
    /// `model_meta.json`; empty where there is none.
    pub meta: Map<String, Value>,
    /// The results, in the order of their files.
    pub results: Vec<TaskResult>,
}

/// The score of a run on a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// Name of the task.
    pub task: String,
    /// A task for vectors; the others are for likelihoods.
    pub is_embedding: bool,
    /// What `value` is: `main_score`, or the metric's name of a language task.
    pub metric: String,
    /// A share times 100; a perplexity as it is.
    pub value: f64,
    /// Questions of a language task that were asked at most; 0: all.
    pub limit: u64,
    /// Texts or questions that were scored, where the file says so.
    pub num_scored: Option<u64>,
    /// Hash of the data files, where the file has it.
    pub data_fingerprint: Option<String>,
    /// Commit of the data set, where the file has one.
    pub dataset_revision: Option<String>,
    /// Version of the `mteb` package by whose protocol the score is, where the file says so.
    pub mteb_version: Option<String>,
    /// The split that was scored; several are joined by `+`, and their mean counts.
    pub split: String,
    /// Which of several subsets (languages) of the set count.
    pub chosen_subsets: Option<String>,
}

impl TaskResult {
    /// Whether a lower value is a better one.
    pub fn lower_is_better(&self) -> bool {
        LOWER_IS_BETTER.contains(&self.metric.as_str())
    }
}

/// What was found below the directories that were named.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The runs with at least one result, in the order of their directories.
    pub runs: Vec<Run>,
    /// Files that are no results, with the reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Reads all results below `paths`: directories of results, of a model, or of a revision, or single result files. What
/// is reached twice is read once.
///
/// A file that cannot be read is told, and does not keep the others from being shown.
pub fn read_runs(paths: &[PathBuf]) -> Found {
    let mut walk = Walk::default();
    for path in paths {
        walk.visit(path, 0);
    }
    let mut found = Found { runs: Vec::new(), unreadable: walk.unreadable };
    for (dir, files) in &walk.dirs {
        let run = read_run(dir, files, &mut found.unreadable);
        if !run.results.is_empty() {
            found.runs.push(run);
        }
    }
    found
}

/// Files on their way to be read.
#[derive(Default)]
struct Walk {
    /// Revision directories, in full, with their files as the user reaches them.
    dirs: Vec<(PathBuf, Vec<PathBuf>)>,
    unreadable: Vec<(PathBuf, String)>,
}

impl Walk {
    /// Takes up the file at `path`, or the `.json` files below it.
    fn visit(&mut self, path: &Path, depth: usize) {
        if let Err(error) = self.try_visit(path, depth) {
            self.unreadable.push((path.to_owned(), error.to_string()));
        }
    }

    fn try_visit(&mut self, path: &Path, depth: usize) -> std::io::Result<()> {
        let full = path.canonicalize()?;
        if full.is_dir() {
            if depth <= MAX_DEPTH {
                let mut entries = Vec::new();
                for entry in std::fs::read_dir(path)? {
                    entries.push(entry?.path());
                }
                entries.sort();
                for entry in entries.iter().filter(|entry| entry.is_dir() || is_candidate(entry)) {
                    self.visit(entry, depth + 1);
                }
            }
            return Ok(());
        }
        let dir = full.parent().unwrap_or(Path::new("")).to_owned();
        let at = self.dirs.iter().position(|(known, _)| *known == dir).unwrap_or_else(|| {
            self.dirs.push((dir, Vec::new()));
            self.dirs.len() - 1
        });
        let files = &mut self.dirs[at].1;
        if !files.iter().any(|file| file.file_name() == full.file_name()) {
            files.push(path.to_owned());
        }
        Ok(())
    }
}

/// Whether a file of a revision directory claims to be a result.
fn is_candidate(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "json") && file.file_name().is_some_and(|n| n != META_FILE)
}

fn read_run(dir: &Path, files: &[PathBuf], unreadable: &mut Vec<(PathBuf, String)>) -> Run {
    let meta_file = dir.join(META_FILE);
    let meta = match meta_file.is_file().then(|| read_object(&meta_file)) {
        Some(Ok(meta)) => meta,
        Some(Err(reason)) => {
            unreadable.push((meta_file, reason));
            Map::new()
        }
        None => Map::new(),
    };
    let name_of = |dir: Option<&Path>| dir.and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    let from_dir = || name_of(dir.parent()).unwrap_or_default().replace("__", "/");
    let name = text(&meta, "name").unwrap_or_else(from_dir);
    let mut run = Run { name, revision: name_of(Some(dir)).unwrap_or_default(), meta, results: Vec::new() };
    for file in files {
        let results = read_object(file).and_then(|stored| {
            // lm-evaluation-harness names the model in its files.
            if let Some(name) = text(&stored, "model_name").filter(|_| run.meta.is_empty()) {
                run.name = name;
            }
            parse(&stored)
        });
        let results = match results {
            Ok(results) => results,
            Err(reason) => {
                unreadable.push((file.clone(), reason));
                continue;
            }
        };
        for new in results {
            let same = |old: &TaskResult| (&old.task, old.limit) == (&new.task, new.limit);
            if run.results.iter().any(same) {
                unreadable.push((file.clone(), format!("a second result of {} in its directory", new.task)));
            } else {
                run.results.push(new);
            }
        }
    }
    run
}

fn read_object(file: &Path) -> Result<Map<String, Value>, String> {
    let length = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("expected at most {MAX_FILE_BYTES} bytes, found {length}"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    match serde_json::from_str(&without_non_numbers(&text)) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("expected an object".into()),
        Err(error) => Err(format!("no JSON: {error}")),
    }
}

/// JSON as Python writes it, with null for the `NaN` and `Infinity` that stand where a metric is undefined.
fn without_non_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| !in_string && rest.starts_with(word));
        let length = match (word, in_string && c == '\\') {
            (Some(word), _) => {
                out.push_str("null");
                rest = &rest[word.len()..];
                continue;
            }
            // What is escaped ends no string.
            (None, true) => c.len_utf8() + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, false) => c.len_utf8(),
        };
        in_string ^= c == '"';
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

/// The commit of the data; a name that moves tells nothing of them.
fn dataset_revision(stored: &Map<String, Value>) -> Option<String> {
    text(stored, "dataset_revision").filter(|name| !["local", "main"].contains(&name.as_str()))
}

fn text(object: &Map<String, Value>, key: &str) -> Option<String> {
    object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn parse(stored: &Map<String, Value>) -> Result<Vec<TaskResult>, String> {
    if stored.contains_key("scores") {
        Ok(vec![embedding_result(stored)?])
    } else if stored.contains_key("results") {
        language_results(stored)
    } else {
        Err("expected `scores` (as the mteb package writes) or `results` (as lm-evaluation-harness does)".into())
    }
}

fn embedding_result(stored: &Map<String, Value>) -> Result<TaskResult, String> {
    let task = text(stored, "task_name").ok_or("expected `task_name`")?;
    let scores = stored["scores"].as_object().filter(|scores| !scores.is_empty());
    let scores = scores.ok_or("expected `scores` to have an entry for each split, found none")?;
    let splits: Vec<&String> = match scores.get_key_value(TEST) {
        Some((test, _)) => vec![test],
        None => scores.keys().collect(),
    };
    let (mut values, mut chosen_subsets) = (Vec::new(), None);
    for split in &splits {
        let entries = scores[*split].as_array().filter(|entries| !entries.is_empty());
        let entries = entries.ok_or_else(|| format!("`scores.{split}`: expected a list of subsets"))?;
        let (kept, told) = english(entries);
        for entry in kept {
            let score = entry.get("main_score").and_then(Value::as_f64).filter(|score| score.is_finite());
            values.push(score.ok_or_else(|| format!("`scores.{split}`: expected a number as `main_score`"))?);
        }
        chosen_subsets = chosen_subsets.or(told);
    }
    let names: Vec<&str> = splits.iter().map(|split| split.as_str()).collect();
    Ok(TaskResult {
        task,
        is_embedding: true,
        metric: "main_score".into(),
        value: 100.0 * values.iter().sum::<f64>() / values.len() as f64,
        limit: 0,
        num_scored: stored.get("num_scored").and_then(Value::as_u64),
        data_fingerprint: text(stored, "data_fingerprint"),
        dataset_revision: dataset_revision(stored),
        mteb_version: text(stored, "mteb_version"),
        split: names.join("+"),
        chosen_subsets,
    })
}

/// Of the subsets of a multilingual set the English one, as the English benchmarks have it, and how to call the choice.
/// Where no subset is English alone, all count.
fn english(entries: &[Value]) -> (Vec<&Value>, Option<String>) {
    let name = |entry: &Value| entry.get("hf_subset").and_then(Value::as_str).unwrap_or("default").to_owned();
    if let [only] = entries {
        return (vec![only], None);
    }
    let is_english = |entry: &&Value| {
        let languages = entry.get("languages").and_then(Value::as_array);
        languages.is_some_and(|all| {
            !all.is_empty() && all.iter().all(|l| l.as_str().is_some_and(|l| l.split('-').next() == Some("eng")))
        })
    };
    let english: Vec<&Value> = entries.iter().filter(is_english).collect();
    let preferred = ENGLISH_SUBSETS.iter().find_map(|wanted| english.iter().find(|entry| name(entry) == **wanted));
    let kept = match (preferred, english.is_empty()) {
        (Some(one), _) => vec![*one],
        (None, false) => english,
        (None, true) => entries.iter().collect(),
    };
    let names: Vec<String> = kept.iter().map(|entry| name(entry)).collect();
    let mean_of = if names.len() > 1 { "the mean of " } else { "" };
    let told = format!("{mean_of}{} of {} subsets", names.join(", "), entries.len());
    (kept, Some(told))
}

/// A file of language tasks: one task of ours, whose main metric it names, or all of a run of lm-evaluation-harness, of
/// which groups stand for their parts.
fn language_results(stored: &Map<String, Value>) -> Result<Vec<TaskResult>, String> {
    let results = stored["results"].as_object().filter(|results| !results.is_empty());
    let results = results.ok_or("expected `results` to have an entry for each task, found none")?;
    let groups = stored.get("group_subtasks").and_then(Value::as_object);
    let parts = groups.into_iter().flat_map(Map::values).filter_map(Value::as_array).flatten();
    let parts: Vec<&str> = parts.filter_map(Value::as_str).collect();
    let whole = results.iter().filter(|(task, _)| !parts.contains(&task.as_str()));
    whole.map(|(task, metrics)| language_result(stored, task, metrics)).collect()
}

fn language_result(stored: &Map<String, Value>, task: &str, metrics: &Value) -> Result<TaskResult, String> {
    let number = |key: &str| metrics.get(key).and_then(Value::as_f64).filter(|value| value.is_finite());
    let named = text(stored, "main_metric");
    let key = match &named {
        Some(key) => Some(key.as_str()),
        None => MAIN_METRICS.into_iter().find(|key| number(key).is_some()),
    };
    let key = key.ok_or_else(|| format!("`results.{task}`: expected a metric such as `acc,none`"))?;
    let value = number(key).ok_or_else(|| format!("`results.{task}`: expected a number as `{key}`"))?;
    let metric = key.split(',').next().unwrap_or(key).to_owned();
    let scale = if LOWER_IS_BETTER.contains(&metric.as_str()) { 1.0 } else { 100.0 };
    let counts = stored.get("n-samples").and_then(|counts| counts.get(task)?.get("effective"));
    let num_scored = counts.or_else(|| metrics.get("sample_len")).and_then(Value::as_u64);
    // The harness writes a number of questions with a point, or a share of them.
    let limit = match stored.get("config").and_then(|config| config.get("limit")).and_then(Value::as_f64) {
        Some(share) if share > 0.0 && share < 1.0 => num_scored.unwrap_or(1),
        limit => limit.unwrap_or(0.0) as u64,
    };
    let examples = stored.get("n-shot").and_then(|counts| counts.get(task)?.as_u64());
    let ours = HARNESS_NAMES.iter().find(|(name, ..)| *name == task).map(|(_, count, ours)| (*count, *ours));
    // Another number of examples is another task.
    let called = match (ours, examples) {
        (Some((count, ours)), Some(found)) if count == found => ours.to_owned(),
        (_, Some(count)) => format!("{task}, {count}-shot"),
        (_, None) => task.to_owned(),
    };
    Ok(TaskResult {
        task: called,
        is_embedding: false,
        metric,
        value: scale * value,
        limit,
        num_scored,
        data_fingerprint: text(stored, "data_fingerprint"),
        dataset_revision: dataset_revision(stored),
        mteb_version: None,
        split: TEST.into(),
        chosen_subsets: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(stored: Value) -> Result<TaskResult, String> {
        Ok(parse(stored.as_object().unwrap())?.remove(0))
    }

    fn entry(subset: &str, languages: &[&str], main_score: f64) -> Value {
        json!({"hf_subset": subset, "languages": languages, "main_score": main_score})
    }

    #[test]
    fn the_english_subset_of_the_test_split_counts() {
        let of = |entries: Value| {
            let result = parsed(json!({"task_name": "T", "scores": {"validation": [], "test": entries}})).unwrap();
            (result.value, result.split, result.chosen_subsets)
        };
        let (german, mixed) = (entry("de", &["deu-Latn"], 0.25), entry("en-de", &["eng-Latn", "deu-Latn"], 0.5));
        // AmazonCounterfactualClassification has two English subsets, of which MTEB(eng, v2) takes `en`.
        let two = json!([german, entry("en-ext", &["eng-Latn"], 0.75), entry("en", &["eng-Latn"], 1.0)]);
        assert_eq!(of(two), (100.0, "test".into(), Some("en of 3 subsets".into())));
        let others = json!([mixed, entry("x", &["eng-Latn"], 0.75), entry("y", &["eng-Latn"], 0.25)]);
        assert_eq!(of(others), (50.0, "test".into(), Some("the mean of x, y of 3 subsets".into())));
        assert_eq!(of(json!([german, mixed])).0, 37.5);
        assert_eq!(of(json!([german])), (25.0, "test".into(), None));
    }

    #[test]
    fn what_is_no_result_is_told() {
        let wrong = [
            (json!({"a": 1}), "expected `scores`"),
            (json!({"scores": {}, "task_name": "T"}), "an entry for each split"),
            (json!({"scores": {"test": []}, "task_name": "T"}), "`scores.test`: expected a list"),
            (json!({"scores": {"test": [{"main_score": null}]}, "task_name": "T"}), "a number as `main_score`"),
            (json!({"scores": {"test": [entry("en", &[], 0.5)]}}), "`task_name`"),
            (json!({"results": {}}), "an entry for each task"),
            (json!({"results": {"T": {"acc_stderr,none": 0.5}}}), "`results.T`: expected a metric such as `acc,none`"),
            (json!({"results": {"T": {"acc,none": 0.5}}, "main_metric": "f1,none"}), "a number as `f1,none`"),
            (json!({"results": {"T": {}, "U": {}}, "main_metric": "f1,none"}), "a number as `f1,none`"),
        ];
        for (stored, reason) in wrong {
            let found = parsed(stored).unwrap_err();
            assert!(found.contains(reason), "{found}");
        }
    }

    #[test]
    fn what_python_writes_for_undefined_metrics_is_null() {
        let python = r#"{"NaN \" NaN": NaN, "a": [-Infinity, Infinity, "Infinity\\"], "b": -1}"#;
        let want = r#"{"NaN \" NaN": null, "a": [null, null, "Infinity\\"], "b": -1}"#;
        assert_eq!(without_non_numbers(python), want);
    }
}
