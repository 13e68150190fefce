//! Runs side by side: which results can be compared, their common mean, and what differs between them.

use super::results::{Run, TaskResult};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What `model_meta.json` has that tells runs of one model apart.
const SETTINGS: [&str; 4] = ["method", "max_tokens", "standardised", "instructions"];

/// The order of the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// By the common mean, the best first: that of the embedding tasks, else that of the language tasks.
    #[default]
    Mean,
    /// By name.
    Name,
}

/// Models and tasks as a table has them.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// What each model is called; different names.
    pub models: Vec<String>,
    /// The run of each model.
    pub runs: Vec<Run>,
    /// The tasks: those for vectors first.
    pub columns: Vec<Column>,
    /// The mean over common embedding tasks and over common language tasks, where there is any.
    pub means: [Option<Mean>; 2],
    /// What a reader of the numbers has to know, one sentence or two each.
    pub notes: Vec<String>,
}

/// A task with the score of each model.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// The task, and of a language task the metric and a limit.
    pub title: String,
    /// A task for vectors.
    pub is_embedding: bool,
    /// Whether a lower score is a better one.
    pub lower_is_better: bool,
    /// The results do not say that they differ in their data: otherwise the scores are no comparison.
    pub is_comparable: bool,
    /// The score of each model that has one.
    pub values: Vec<Option<f64>>,
}

/// The mean over the same tasks for all models.
#[derive(Debug, Clone, PartialEq)]
pub struct Mean {
    /// Over how many tasks.
    pub num_tasks: usize,
    /// Of each model; `None` for one without a task of this kind.
    pub values: Vec<Option<f64>>,
}

/// What makes two results comparable at all, in the order of the columns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    is_language: bool,
    task: String,
    metric: String,
    limit: u64,
}

impl Key {
    fn of(result: &TaskResult) -> Self {
        Self {
            is_language: !result.is_embedding,
            task: result.task.clone(),
            metric: result.metric.clone(),
            limit: result.limit,
        }
    }

    fn title(&self) -> String {
        let metric = if self.is_language { format!(", {}", self.metric) } else { String::new() };
        let limit = if self.limit > 0 { format!(", limit {}", self.limit) } else { String::new() };
        format!("{}{metric}{limit}", self.task)
    }
}

/// Compares `runs` on the tasks named, or on all where none is; a run without any of them is left out, and told.
pub fn compare(runs: Vec<Run>, tasks: &[String], order: Order) -> Comparison {
    let wanted = |result: &&TaskResult| tasks.is_empty() || tasks.contains(&result.task);
    let (runs, without): (Vec<Run>, Vec<Run>) =
        runs.into_iter().partition(|run| run.results.iter().any(|r| wanted(&r)));
    let models = labels(&runs);
    let keys: BTreeSet<Key> = runs.iter().flat_map(|run| run.results.iter().filter(wanted)).map(Key::of).collect();
    let mut notes: Vec<String> =
        without.iter().map(|run| format!("{} has no result of these tasks and is left out.", run.name)).collect();
    let columns: Vec<Column> = keys
        .iter()
        .map(|key| {
            let results: Vec<Option<&TaskResult>> =
                runs.iter().map(|run| run.results.iter().find(|result| Key::of(result) == *key)).collect();
            let told = differences(&results, &models);
            notes.extend(told.iter().map(|told| format!("{} †: {told}.", key.title())));
            Column {
                title: key.title(),
                is_embedding: !key.is_language,
                lower_is_better: results.iter().flatten().any(|result| result.lower_is_better()),
                is_comparable: told.is_none(),
                values: results.iter().map(|result| result.map(|result| result.value)).collect(),
            }
        })
        .collect();
    notes.extend(different_limits(&keys));
    notes.extend(notes_on_runs(&runs, &models, &wanted));
    let (means, told): (Vec<_>, Vec<_>) =
        [true, false].map(|kind| common_mean(&columns, kind, &models)).into_iter().unzip();
    notes.splice(0..0, told.into_iter().flatten());
    let mut means = means.into_iter();
    let means = [means.next().flatten(), means.next().flatten()];
    let mut comparison = Comparison { models, runs, columns, means, notes };
    comparison.sort(order);
    comparison
}

impl Comparison {
    fn sort(&mut self, order: Order) {
        let mean = |kind: usize, at: usize| self.means[kind].as_ref().and_then(|mean| mean.values[at]);
        // A model without a mean comes after those with one.
        let score = |kind: usize, at: usize| mean(kind, at).unwrap_or(f64::NEG_INFINITY);
        let mut places: Vec<usize> = (0..self.models.len()).collect();
        places.sort_by(|&a, &b| {
            let by_name = self.models[a].cmp(&self.models[b]);
            match order {
                Order::Name => by_name,
                Order::Mean => {
                    let by_mean = |kind| score(kind, b).total_cmp(&score(kind, a));
                    by_mean(0).then_with(|| by_mean(1)).then(by_name)
                }
            }
        });
        let sorted = |values: &[Option<f64>]| places.iter().map(|&at| values[at]).collect::<Vec<_>>();
        for column in &mut self.columns {
            column.values = sorted(&column.values);
        }
        for mean in self.means.iter_mut().flatten() {
            mean.values = sorted(&mean.values);
        }
        self.models = places.iter().map(|&at| self.models[at].clone()).collect();
        self.runs = places.iter().map(|&at| self.runs[at].clone()).collect();
    }
}

/// The models whose values are the same, by value: `512 (a, b); 8192 (c)`.
fn grouped_by(values: &[(String, &String)]) -> Option<String> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (value, model) in values {
        groups.entry(value).or_default().push(model);
    }
    let told: Vec<String> = groups.iter().map(|(value, models)| format!("{value} ({})", models.join(", "))).collect();
    (groups.len() > 1).then(|| told.join("; "))
}

/// What shows that results of one task are of different data, if anything does.
fn differences(results: &[Option<&TaskResult>], models: &[String]) -> Option<String> {
    type Part = (&'static str, fn(&TaskResult) -> Option<String>);
    let short = |text: &String| text.chars().take(12).collect::<String>();
    let parts: [Part; 4] = [
        ("data_fingerprint", |result| result.data_fingerprint.clone()),
        ("dataset_revision", |result| result.dataset_revision.clone()),
        ("num_scored", |result| result.num_scored.map(|number| number.to_string())),
        ("split", |result| Some(result.split.clone())),
    ];
    // Scores of the same data may leave out other texts: those that a model cannot tell apart.
    let is_told = results.iter().flatten().all(|result| result.data_fingerprint.is_some());
    let told: Vec<String> = parts
        .into_iter()
        .filter(|(name, _)| *name != "num_scored" || !is_told)
        .filter_map(|(name, value)| {
            let known =
                results.iter().zip(models).filter_map(|(result, model)| Some((short(&value((*result)?)?), model)));
            Some(format!("{name} {}", grouped_by(&known.collect::<Vec<_>>())?))
        })
        .collect();
    let told = (!told.is_empty()).then(|| told.join(", "))?;
    Some(format!("measured on different data ({told}); not a comparison, and in no mean"))
}

/// Tasks that were asked with several limits have a column for each.
fn different_limits(keys: &BTreeSet<Key>) -> Option<String> {
    let mut limits: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for key in keys {
        limits.entry((&key.task, &key.metric)).or_default().push(key.limit);
    }
    let several: Vec<&str> = limits.iter().filter(|(_, all)| all.len() > 1).map(|((task, _), _)| *task).collect();
    (!several.is_empty()).then(|| {
        format!("{}: asked with different limits, which have a column each and are not compared.", several.join(", "))
    })
}

/// What differs between runs as wholes, and what their results leave open.
fn notes_on_runs(runs: &[Run], models: &[String], wanted: &dyn Fn(&&TaskResult) -> bool) -> Vec<String> {
    let mut notes = Vec::new();
    let settings = [
        ("max_tokens", "Longest text, in tokens"),
        ("standardised", "Vectors standardised"),
        ("instructions", "Instructions before texts"),
    ];
    for (key, name) in settings {
        let known = runs
            .iter()
            .zip(models)
            .filter_map(|(run, model)| Some((run.meta.get(key).filter(|value| !value.is_null())?.to_string(), model)));
        notes.extend(grouped_by(&known.collect::<Vec<_>>()).map(|told| format!("{name}: {told}.")));
    }
    let versions = runs.iter().zip(models).filter_map(|(run, model)| {
        let versions: BTreeSet<&str> =
            run.results.iter().filter(wanted).filter_map(|r| r.mteb_version.as_deref()).collect();
        let versions: Vec<&str> = versions.into_iter().collect();
        (!versions.is_empty()).then(|| (versions.join(", "), model))
    });
    notes.extend(
        grouped_by(&versions.collect::<Vec<_>>())
            .map(|told| format!("Version of the mteb package, between which protocols change: {told}.")),
    );
    let results = |run: &'_ Run| run.results.iter().filter(wanted).cloned().collect::<Vec<TaskResult>>();
    // The same commit of a data set is as good as the same hash.
    let is_same_commit = |result: &TaskResult| {
        let same = |other: &TaskResult| other.task == result.task && other.dataset_revision == result.dataset_revision;
        result.dataset_revision.is_some()
            && runs.iter().flat_map(|run| &run.results).filter(|other| same(other)).count() > 1
    };
    let lacks_hash =
        |run: &Run| results(run).iter().any(|result| result.data_fingerprint.is_none() && !is_same_commit(result));
    let without: Vec<&str> =
        runs.iter().zip(models).filter(|(run, _)| lacks_hash(run)).map(|(_, model)| model.as_str()).collect();
    if (1..runs.len()).contains(&without.len()) {
        notes.push(format!(
            "No hash of the data is in results of {}: that they are of the same data as the others rests on the names of the \
             tasks.",
            without.join(", ")
        ));
    }
    let mut chosen: BTreeSet<String> = BTreeSet::new();
    for (run, model) in runs.iter().zip(models) {
        let told = |result: TaskResult| Some(format!("{} of {model}: {}", result.task, result.chosen_subsets?));
        chosen.extend(results(run).into_iter().filter_map(told));
    }
    if !chosen.is_empty() {
        let chosen: Vec<String> = chosen.into_iter().collect();
        notes.push(format!("Of sets in several languages the English subset counts. {}.", chosen.join("; ")));
    }
    notes
}

/// The mean over the tasks of a kind that all models with any of them have, and over which tasks it is.
fn common_mean(columns: &[Column], is_embedding: bool, models: &[String]) -> (Option<Mean>, Option<String>) {
    let kind = if is_embedding { "embedding" } else { "language" };
    let (columns, perplexities): (Vec<&Column>, Vec<&Column>) =
        columns.iter().filter(|column| column.is_embedding == is_embedding).partition(|column| !column.lower_is_better);
    let num_perplexities = perplexities.len();
    let shown: Vec<usize> =
        (0..models.len()).filter(|&at| columns.iter().any(|column| column.values[at].is_some())).collect();
    let is_common = |column: &&&Column| column.is_comparable && shown.iter().all(|&at| column.values[at].is_some());
    let common: Vec<&&Column> = columns.iter().filter(is_common).collect();
    if columns.is_empty() {
        return (None, None);
    }
    let left_out: Vec<String> = columns
        .iter()
        .filter(|column| !is_common(column))
        .map(|column| {
            let (present, missing): (Vec<usize>, Vec<usize>) =
                shown.iter().partition(|&&at| column.values[at].is_some());
            let names = |places: &[usize]| places.iter().map(|&at| models[at].as_str()).collect::<Vec<_>>().join(", ");
            let why = match missing.len() {
                0 => "other data".to_owned(),
                most if most > present.len() => format!("of {} alone", names(&present)),
                _ => format!("not of {}", names(&missing)),
            };
            format!("{} ({why})", column.title)
        })
        .collect();
    let of = match shown.len() {
        1 => "the one model".to_owned(),
        all if all == models.len() => format!("all {all} models"),
        some => format!("all {some} models with such tasks"),
    };
    let mut told = match common.len() {
        0 => format!("No {kind} task has comparable results of {of}, so there is no mean."),
        1 => format!("One {kind} task has comparable results of {of}: {}.", common[0].title),
        all => format!("The mean is over the {all} of {} {kind} tasks with comparable results of {of}.", columns.len()),
    };
    if num_perplexities > 0 {
        told.push_str(" A perplexity is no share, and in no mean.");
    }
    if !left_out.is_empty() {
        told.push_str(&format!(" Left out: {}.", left_out.join("; ")));
    }
    let mean = (!common.is_empty()).then(|| {
        let of = |at: &usize| common.iter().map(|column| column.values[*at]).sum::<Option<f64>>();
        let in_group = |at: usize| shown.contains(&at).then(|| of(&at)).flatten();
        let values = (0..models.len()).map(|at| Some(in_group(at)? / common.len() as f64)).collect();
        Mean { num_tasks: common.len(), values }
    });
    (mean, Some(told))
}

/// A name for each run: the model's, with what tells it from its namesakes.
fn labels(runs: &[Run]) -> Vec<String> {
    // Everything that this program measures is filed under its own name.
    let plain = |run: &Run| run.name.strip_prefix("lapidary/").unwrap_or(&run.name).to_owned();
    let shown = |run: &Run, key: &str| match (key, run.meta.get(key)) {
        (_, None | Some(Value::Null)) => String::new(),
        ("standardised", Some(value)) => if value == true { "standardised" } else { "as pooled" }.to_owned(),
        ("instructions", Some(value)) => if value == true { "instructions" } else { "" }.to_owned(),
        ("max_tokens", Some(value)) => format!("{value} tokens"),
        (_, Some(value)) => value.as_str().map_or(value.to_string(), str::to_owned),
    };
    let label = |run: &Run| {
        let namesakes: Vec<&Run> = runs.iter().filter(|other| plain(other) == plain(run)).collect();
        let mut parts: Vec<String> = SETTINGS
            .into_iter()
            .filter(|key| namesakes.iter().any(|other| shown(other, key) != shown(run, key)))
            .map(|key| shown(run, key))
            .filter(|part| !part.is_empty())
            .collect();
        let settings = |run: &Run| SETTINGS.map(|key| shown(run, key));
        if namesakes.iter().filter(|other| settings(other) == settings(run)).count() > 1 {
            parts.push(run.revision.chars().take(8).collect());
        }
        if parts.is_empty() { plain(run) } else { format!("{} ({})", plain(run), parts.join(", ")) }
    };
    let mut labels: Vec<String> = Vec::with_capacity(runs.len());
    for run in runs {
        let label = label(run);
        // The same revision below two directories.
        let name = |count: usize| if count == 1 { label.clone() } else { format!("{label} #{count}") };
        let free = (1..).map(name).find(|name| !labels.contains(name));
        labels.extend(free);
    }
    labels
}
