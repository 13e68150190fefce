//! Data of evaluation tasks from the hub: which repository a task is in, and its tables as the loaders want them.

use super::Fetcher;
use super::hub::explain;
use anyhow::{Context as _, Result, bail};
use hf_hub::api::sync::ApiRepo;
use hf_hub::{Cache, Repo, RepoType};
use lapidary::data::mteb::load_top_ranked;
use lapidary::data::tasks::{SPLIT_EXTENSIONS, load_texts, shard_of, split_file};
use lapidary::output::atomic::{AtomicDir, write_file};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

const TABLE: &str = include_str!("data_sets.toml");
/// The split that is scored, the table that makes a retrieval set one of reranking, and a text as a table of its lines.
const TEST: &str = "test";
const TOP_RANKED: &str = "top_ranked";
const LINES: &str = "lines";

/// The file `data_sets.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataSets {
    places: BTreeMap<String, Vec<String>>,
    places_of_one: BTreeMap<String, Vec<String>>,
    tasks: BTreeMap<String, DataSet>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataSet {
    repository: String,
    revision: String,
    subset: Option<String>,
    parts: Vec<String>,
}

/// The data of a task on this machine.
#[derive(Debug)]
pub(crate) struct TaskData {
    /// Its directory, in the layout that `lapidary eval tasks` reads.
    pub(crate) dir: PathBuf,
    /// The commit of the data set.
    pub(crate) revision: String,
}

/// The subset of a task as its package calls it: of a multilingual one the English, else `default`.
pub(crate) fn subset_of(name: &str) -> Result<String> {
    let mut sets: DataSets = toml::from_str(TABLE).context("data_sets.toml")?;
    Ok(sets.tasks.remove(name).and_then(|set| set.subset).unwrap_or_else(|| "default".into()))
}

impl Fetcher {
    /// The data of the task `name`, fetched if they are not on this machine.
    ///
    /// # Errors
    /// In one line: a task that the table does not have, no connection, a repository without one of its tables, a full
    /// disk.
    pub(crate) fn task_data(&self, name: &str) -> Result<TaskData> {
        let mut sets: DataSets = toml::from_str(TABLE).context("data_sets.toml")?;
        let Some(set) = sets.tasks.remove(name) else {
            let others = sets.tasks.iter().filter(|(_, set)| !set.repository.starts_with("mteb/"));
            let others: Vec<&str> = others.map(|(name, _)| name.as_str()).collect();
            bail!(
                "no data set on the hub is known for it: expected a task of MTEB(eng, v1) or MTEB(eng, v2) with a test split, \
                 or one of {}",
                others.join(", ")
            );
        };
        let dir = self.cache_dir.join("tasks").join(name).join(&set.revision);
        if !dir.is_dir() {
            self.fetch_task(&sets, &set, &dir)
                .with_context(|| format!("data set {} at {}", set.repository, set.revision))?;
        }
        Ok(TaskData { dir, revision: set.revision })
    }

    fn fetch_task(&self, sets: &DataSets, set: &DataSet, dir: &Path) -> Result<()> {
        let named = Repo::with_revision(set.repository.clone(), RepoType::Dataset, set.revision.clone());
        let repo = self.hub_api(Cache::new(self.hub_cache_dir.clone()))?.repo(named);
        let info = repo.info().map_err(explain)?;
        let listed: BTreeSet<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        // Nothing is fetched before it is known that everything is there.
        let mut files = Vec::new();
        for part in &set.parts {
            files.extend(sets.files(set, part, &listed)?);
        }
        let parent = dir.parent().context("no directory above the task's")?;
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        let whole = AtomicDir::replace(dir)?;
        let has = |part: &str| set.parts.iter().any(|named| named == part);
        let as_read = if has(TOP_RANKED) {
            // The loaders want the documents of each query in its row.
            Some(("test.jsonl", ranked as fn(&Path) -> Result<String>))
        } else if has(LINES) {
            Some(("wiki.test.raw", raw_text as fn(&Path) -> Result<String>))
        } else {
            None
        };
        if let Some((name, convert)) = as_read {
            let tables = AtomicDir::replace(&whole.path().join("tables"))?;
            place(&repo, &files, tables.path())?;
            let text = convert(tables.path())?;
            write_file(&whole.path().join(name), |file| file.write_all(text.as_bytes()))?;
        } else {
            place(&repo, &files, whole.path())?;
        }
        Ok(whole.commit()?)
    }
}

/// The rows of a reranking set as JSON Lines.
fn ranked(tables: &Path) -> Result<String> {
    let rows = load_top_ranked(tables, TEST)?;
    let lines = rows
        .iter()
        .map(|row| format!("{}\n", json!({"query": row.query, "positive": row.positive, "negative": row.negative})));
    Ok(lines.collect())
}

/// The text that a table of its lines was made from: the lines kept their ends, and empty ones lost all they had, which
/// was ` \n` (`wikitext.py` of the datasets library).
fn raw_text(tables: &Path) -> Result<String> {
    let lines = load_texts(&split_file(tables, LINES)?)?;
    if let Some(line) = lines.iter().find(|line| !line.is_empty() && !line.ends_with('\n')) {
        bail!("expected lines with their ends, found {line:?}");
    }
    Ok(lines.iter().map(|line| if line.is_empty() { " \n" } else { line.as_str() }).collect())
}

/// Fetches files, each to its place below `dir`.
fn place(repo: &ApiRepo, files: &[(String, String)], dir: &Path) -> Result<()> {
    for (name, to) in files {
        let fetched = repo.get(name).map_err(explain).with_context(|| name.clone())?;
        // What the hub's cache names is a link to the file itself.
        let file = fetched.canonicalize().with_context(|| fetched.display().to_string())?;
        let to = dir.join(to);
        let parent = to.parent().unwrap_or(dir);
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        // A second name costs nothing; where the caches are on two disks a copy does.
        fs::hard_link(&file, &to)
            .or_else(|_| fs::copy(&file, &to).map(drop))
            .with_context(|| to.display().to_string())?;
    }
    Ok(())
}

impl DataSets {
    /// The files that hold `part` of a set, of those `listed` in its repository, with the name that each gets.
    fn files(&self, set: &DataSet, part: &str, listed: &BTreeSet<&str>) -> Result<Vec<(String, String)>> {
        let subset = set.subset.as_deref().unwrap_or("default");
        let of_one = set.subset.is_none().then(|| self.places_of_one.get(part)).flatten();
        let places = self.places.get(part).into_iter().chain(of_one).flatten();
        let places: Vec<String> = places.map(|place| place.replace("{subset}", subset)).collect();
        let to = if part == "qrels" { format!("qrels/{TEST}") } else { part.to_owned() };
        let found = places.iter().find_map(|place| at_place(place, listed));
        let Some(found) = found else {
            bail!(
                "expected the table {part} as one of {}, ending in .{} or -00000-of-00001.parquet; found none of them",
                places.join(", "),
                SPLIT_EXTENSIONS.join(", .")
            );
        };
        Ok(found.into_iter().map(|(name, ending)| (name, format!("{to}{ending}"))).collect())
    }
}

/// The file, or all shards, at a place in a repository, each with the ending of its name.
fn at_place(place: &str, listed: &BTreeSet<&str>) -> Option<Vec<(String, String)>> {
    let whole = SPLIT_EXTENSIONS.iter().map(|extension| format!(".{extension}"));
    for ending in whole {
        let name = format!("{place}{ending}");
        if listed.contains(name.as_str()) {
            return Some(vec![(name, ending)]);
        }
    }
    let shards: BTreeMap<(usize, usize), &str> =
        listed.iter().filter_map(|name| Some((shard_of(name, place)?, *name))).collect();
    let &(_, of) = shards.keys().next()?;
    let complete = (0..of).map(|index| {
        let name = *shards.get(&(index, of))?;
        Some((name.to_owned(), format!("-{index:05}-of-{of:05}.parquet")))
    });
    complete.collect()
}
