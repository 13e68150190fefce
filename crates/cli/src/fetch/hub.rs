//! Models on the hub: the files of one commit, in the cache that other tools of the hub share.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde_json::Value;

use super::Fetcher;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Fetched where the repository has them.
const OPTIONAL_FILES: [&str; 3] = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];

impl Fetcher {
    /// The directory with the files of the model: as cached, or the newest of `revision`.
    pub(super) fn hub(&self, id: &str, revision: Option<&str>) -> Result<PathBuf> {
        let revision = revision.unwrap_or("main");
        let cache = Cache::new(self.hub_cache_dir.clone());
        let named = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let cached = cache.repo(named.clone());
        if let Some(dir) = complete_in_cache(&cached) {
            return Ok(dir);
        }
        let api = self.hub_api(cache)?;
        let info = api.repo(named).info().map_err(explain)?;
        if info.sha.is_empty() || !info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            bail!("expected a commit of revision `{revision}`, found `{}`", shortened(&info.sha));
        }
        // All files from one commit, even if the branch moves meanwhile.
        let pinned = Repo::with_revision(id.to_owned(), RepoType::Model, info.sha.clone());
        let listed: BTreeSet<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let dir = fetch_files(&api.repo(pinned), &listed)?;
        cached.create_ref(&info.sha).with_context(|| format!("revision {revision}"))?;
        Ok(dir)
    }

    /// One file of a data set: as cached, or the newest.
    ///
    /// # Errors
    /// In one line: no connection, no such data set or file, a full disk.
    pub(crate) fn data_set_file(&self, id: &str, file: &str) -> Result<PathBuf> {
        let cache = Cache::new(self.hub_cache_dir.clone());
        let named = Repo::new(id.to_owned(), RepoType::Dataset);
        if let Some(path) = cache.repo(named.clone()).get(file) {
            return Ok(path);
        }
        let fetched = self.hub_api(cache).and_then(|api| api.repo(named).get(file).map_err(explain));
        fetched.with_context(|| format!("{file} of the data set {id}"))
    }

    pub(super) fn hub_api(&self, cache: Cache) -> Result<Api> {
        if self.options.offline {
            let dir = self.hub_cache_dir.display();
            bail!("not in the hub's cache ({dir}), and --offline forbids fetching it");
        }
        let mut builder = ApiBuilder::from_cache(cache).with_token(self.hub_token.clone());
        if let Some(endpoint) = &self.hub_endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        builder.build().map_err(explain)
    }
}

/// Fetches what is needed of the `listed` files; they land in one directory.
fn fetch_files(repo: &ApiRepo, listed: &BTreeSet<&str>) -> Result<PathBuf> {
    let get = |name: &str| repo.get(name).map_err(explain).with_context(|| name.to_owned());
    for name in [CONFIG, TOKENIZER] {
        if !listed.contains(name) {
            bail!("expected {name} in the repository, found none");
        }
    }
    let config = get(CONFIG)?;
    get(TOKENIZER)?;
    for name in OPTIONAL_FILES.iter().filter(|name| listed.contains(*name)) {
        get(name)?;
    }
    if listed.contains(WEIGHTS) {
        get(WEIGHTS)?;
    } else if listed.contains(WEIGHTS_INDEX) {
        for name in shard_names(&get(WEIGHTS_INDEX)?)? {
            get(&name)?;
        }
    } else {
        bail!("expected {WEIGHTS} or {WEIGHTS_INDEX} in the repository, found neither");
    }
    Ok(config.parent().context("no directory around config.json")?.to_owned())
}

/// The directory of the revision, if everything that is needed is in it.
fn complete_in_cache(repo: &CacheRepo) -> Option<PathBuf> {
    let config = repo.get(CONFIG)?;
    repo.get(TOKENIZER)?;
    if repo.get(WEIGHTS).is_none() {
        for name in shard_names(&repo.get(WEIGHTS_INDEX)?).ok()? {
            repo.get(&name)?;
        }
    }
    Some(config.parent()?.to_owned())
}

/// The files that an index names; each a plain name, as it becomes a path in the cache.
fn shard_names(index: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(index).with_context(|| format!("{}", index.display()))?;
    let json: Value = serde_json::from_str(&text).context(WEIGHTS_INDEX)?;
    let weight_map = json.get("weight_map").and_then(Value::as_object);
    let weight_map = weight_map.with_context(|| format!("{WEIGHTS_INDEX}: expected weight_map"))?;
    let mut names = BTreeSet::new();
    for name in weight_map.values() {
        let plain = name.as_str().filter(|name| {
            name.ends_with(".safetensors")
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        });
        let Some(plain) = plain else {
            let found = shortened(&name.to_string());
            bail!("{WEIGHTS_INDEX}: expected names of safetensors files, found {found}");
        };
        names.insert(plain.to_owned());
    }
    Ok(names)
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// What the user can do about it, in one line.
pub(super) fn explain(error: ApiError) -> anyhow::Error {
    let text = error.to_string();
    let line = shortened_line(&text);
    if text.contains("status code 401") || text.contains("status code 403") {
        anyhow::anyhow!("nothing of that name, or something that asks for a token (HF_TOKEN) ({line})")
    } else if text.contains("status code 404") {
        anyhow::anyhow!("nothing of that name, revision or file on the hub ({line})")
    } else {
        anyhow::anyhow!("the hub cannot be reached; a directory can be given instead ({line})")
    }
}

fn shortened_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

#[cfg(test)]
#[path = "../../tests/cli/hub_server.rs"]
mod hub_server;

#[cfg(test)]
mod tests {
    use super::hub_server::{COMMIT, Hub};
    use super::*;
    use crate::fetch::FetchOptions;

    fn fetcher(dir: &Path, offline: bool) -> Fetcher {
        Fetcher {
            options: FetchOptions { offline, ..FetchOptions::default() },
            cache_dir: dir.join("own"),
            hub_cache_dir: dir.to_owned(),
            // A port that nobody listens on.
            hub_endpoint: Some("http://127.0.0.1:9".into()),
            hub_token: None,
            pip_commands: Vec::new(),
        }
    }

    #[test]
    fn a_complete_model_in_the_cache_needs_no_network() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        let snapshot = repository.join("snapshots").join("abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs").join("main"), "abc").unwrap();
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        fs::write(snapshot.join(WEIGHTS_INDEX), index).unwrap();
        for name in [CONFIG, TOKENIZER, "1.safetensors"] {
            fs::write(snapshot.join(name), "{}").unwrap();
        }
        let fetcher = fetcher(cache.path(), true);
        let message = fetcher.hub("org/name", None).unwrap_err().to_string();
        assert!(message.contains("--offline forbids fetching it"), "{message}");
        fs::write(snapshot.join("2.safetensors"), "").unwrap();
        assert_eq!(fetcher.hub("org/name", None).unwrap(), snapshot);
        fetcher.hub("org/name", Some("v2")).unwrap_err();
        fs::write(snapshot.join(WEIGHTS_INDEX), r#"{"weight_map": {"a": "../../x.safetensors"}}"#).unwrap();
        fetcher.hub("org/name", None).unwrap_err();
    }

    /// A hub of one model and one data set.
    fn hub_server() -> String {
        let mut hub = Hub::default();
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        let files = [(CONFIG, "{}"), (TOKENIZER, "{\"t\": 1}"), (WEIGHTS_INDEX, index)];
        for (name, text) in files.into_iter().chain([("1.safetensors", "one"), ("2.safetensors", "two")]) {
            hub.files.insert(format!("/org/name/resolve/{COMMIT}/{name}"), text.into());
        }
        hub.files.insert("/datasets/org/sts/resolve/main/test.jsonl.gz".into(), "pairs".into());
        let names = [CONFIG, TOKENIZER, WEIGHTS_INDEX, "1.safetensors", "2.safetensors", "README.md"];
        hub.info("/api/models/org/name/revision/main", &names);
        hub.serve()
    }

    #[test]
    fn a_model_and_a_file_of_a_data_set_come_from_the_hub_once() {
        let cache = tempfile::tempdir().unwrap();
        let online = Fetcher { hub_endpoint: Some(hub_server()), ..fetcher(cache.path(), false) };
        let dir = online.hub("org/name", None).unwrap();
        for (name, text) in [(CONFIG, "{}"), ("1.safetensors", "one"), ("2.safetensors", "two")] {
            assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), text);
        }
        assert!(!dir.join("README.md").exists());
        let file = online.data_set_file("org/sts", "test.jsonl.gz").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "pairs");
        let message = format!("{:#}", online.hub("org/other", None).unwrap_err());
        assert!(message.contains("on the hub") && !message.contains('\n'), "{message}");
        let message = format!("{:#}", online.data_set_file("org/sts", "train.jsonl.gz").unwrap_err());
        assert!(message.contains("train.jsonl.gz") && message.contains("on the hub"), "{message}");
        let offline = fetcher(cache.path(), true);
        assert_eq!(offline.hub("org/name", None).unwrap(), dir);
        assert_eq!(offline.data_set_file("org/sts", "test.jsonl.gz").unwrap(), file);
    }

    #[test]
    fn no_connection_is_told_in_one_line() {
        let cache = tempfile::tempdir().unwrap();
        let error = fetcher(cache.path(), false).hub("org/name", None).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.starts_with("the hub cannot be reached"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}
