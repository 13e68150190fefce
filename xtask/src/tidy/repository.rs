//! The files of the repository as the rules read them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::source::Source;

/// Endings of the files that are read; data and golden values are not.
const TEXT_ENDINGS: [&str; 7] = [".rs", ".toml", ".md", ".py", ".sh", ".yml", ".txt"];

/// The files by their path from the root, with `/` between the parts.
pub(super) struct Repository {
    /// All text files.
    pub(super) texts: BTreeMap<String, String>,
    /// The Rust files among them.
    pub(super) sources: BTreeMap<String, Source>,
}

impl Repository {
    /// Reads the files that git tracks or would add.
    pub(super) fn read(root: &Path) -> Result<Self, String> {
        let output = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .map_err(|error| format!("git ls-files: {error}"))?;
        if !output.status.success() {
            return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let listing =
            String::from_utf8(output.stdout).map_err(|_| "git ls-files: a path that is no UTF-8".to_owned())?;
        let mut texts = BTreeMap::new();
        for file in listing.split('\0').filter(|file| is_text(file)) {
            // a file that is tracked and deleted is still listed
            if let Ok(bytes) = std::fs::read(root.join(file)) {
                let text = String::from_utf8(bytes).map_err(|_| format!("{file}: expected UTF-8"))?;
                texts.insert(file.to_owned(), text);
            }
        }
        Ok(Self::from_texts(texts))
    }

    fn from_texts(texts: BTreeMap<String, String>) -> Self {
        let rust = texts.iter().filter(|(file, _)| file.ends_with(".rs"));
        let sources = rust.map(|(file, text)| (file.clone(), Source::parse(text))).collect();
        Self { texts, sources }
    }

    /// A repository of these files.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        Self::from_texts(files.iter().map(|&(file, text)| (file.to_owned(), text.to_owned())).collect())
    }

    /// The folders in `crates`.
    pub(super) fn crates(&self) -> Vec<String> {
        let manifest = |file: &String| Some(file.strip_prefix("crates/")?.strip_suffix("/Cargo.toml")?.to_owned());
        self.texts.keys().filter_map(manifest).collect()
    }

    /// The names by which methods are chosen.
    pub(super) fn methods(&self) -> Vec<String> {
        let files = self.texts.iter().filter(|(file, _)| file.starts_with("crates/layout/src/methods/"));
        let name = |line: &str| Some(line.split_once("const NAME: &str = \"")?.1.split_once('"')?.0.to_owned());
        files.flat_map(|(_, text)| text.lines().filter_map(name)).collect()
    }

    /// The Python scripts.
    pub(super) fn scripts(&self) -> Vec<String> {
        let script =
            |file: &String| file.strip_prefix("scripts/").filter(|name| name.ends_with(".py")).map(str::to_owned);
        self.texts.keys().filter_map(script).collect()
    }
}

fn is_text(file: &str) -> bool {
    TEXT_ENDINGS.iter().any(|ending| file.ends_with(ending)) || file.starts_with(".ci/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_not_read() {
        for file in ["a/b.rs", "Cargo.toml", ".ci/run", "data/README.md"] {
            assert!(is_text(file), "{file}");
        }
        for file in ["Cargo.lock", "data/x.txt.gz", "a.json", "snapshots/a.snap"] {
            assert!(!is_text(file), "{file}");
        }
    }
}
