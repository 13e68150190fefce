//! Arrows: which crate may use which, and which module of the library may import which.

use super::Problem;
use super::repository::Repository;
use super::source::{Kind, Word};
use super::tables::{COMMAND_ONLY, COMMAND_ONLY_PLACES, CRATE_ARROWS, MODULE_ARROWS, OWN_DEPENDENCIES, ROOT_ITEMS};

pub(super) fn check(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in &repository.texts {
        if let Some(name) = file.strip_prefix("crates/").and_then(|rest| rest.strip_suffix("/Cargo.toml")) {
            problems.extend(manifest(file, name, text, &repository.crates()));
        }
    }
    for (file, source) in &repository.sources {
        let words = source.words.iter().filter(|word| !word.in_test && !is_test_file(file));
        for word in words {
            problems.extend(module_import(file, word));
            problems.extend(command_only(file, word));
        }
    }
    problems
}

/// Whether a whole file is a test.
pub(super) fn is_test_file(file: &str) -> bool {
    let stem = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".rs");
    file.contains("/tests/") || stem == "tests" || stem.ends_with("_tests") || stem == "synthetic"
}

/// The dependencies of a crate, against the tables.
fn manifest(file: &str, name: &str, text: &str, crates: &[String]) -> Vec<Problem> {
    let allowed = CRATE_ARROWS.iter().find(|entry| entry.0 == name).map(|entry| entry.1);
    let mut problems = Vec::new();
    if allowed.is_none() {
        problems.push(Problem::new(file, 1, format!("the crate {name} is not in CRATE_ARROWS of xtask")));
    }
    for (line, dependency) in dependencies(text) {
        let of_workspace = crates.iter().any(|other| other == dependency);
        if of_workspace && allowed.is_some_and(|allowed| !allowed.contains(&dependency)) {
            problems.push(Problem::new(file, line, format!("the crate {name} must not use {dependency}")));
        }
        if let Some((_, owner)) = OWN_DEPENDENCIES.iter().find(|entry| entry.0 == dependency && entry.1 != name) {
            problems.push(Problem::new(file, line, format!("only the crate {owner} may use {dependency}")));
        }
    }
    problems
}

/// The names in all dependency tables of a manifest, with their lines.
fn dependencies(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_table = false;
    for (line, content) in text.lines().enumerate() {
        if content.starts_with('[') {
            in_table = content.contains("dependencies]");
        } else if in_table && content.starts_with(|first: char| first.is_ascii_alphabetic()) {
            let end = content.find([' ', '.', '=']).unwrap_or(content.len());
            found.push((line + 1, &content[..end]));
        }
    }
    found
}

/// A path from `crate` inside the library, against the arrows between its modules.
fn module_import(file: &str, word: &Word) -> Option<Problem> {
    let place = file.strip_prefix("crates/lapidary/src/")?.strip_suffix(".rs")?;
    let path = word.text.strip_prefix("crate::").filter(|_| word.kind == Kind::Path)?;
    let own = place.split('/').next().unwrap_or(place);
    let first = path.split("::").next().unwrap_or(path);
    let module = ROOT_ITEMS.iter().find(|entry| entry.0 == first).map_or(path, |entry| entry.1);
    let in_place = |prefix: &str| place == prefix || place.starts_with(&format!("{prefix}/"));
    let entries = MODULE_ARROWS.iter().filter(|entry| in_place(entry.0));
    let Some((from, allowed)) = entries.max_by_key(|entry| entry.0.len()) else {
        return Some(Problem::new(file, word.line, format!("the module {own} is not in MODULE_ARROWS of xtask")));
    };
    let stays = *from == own && first == own;
    let is_below = |prefix: &str| module == prefix || module.starts_with(&format!("{prefix}::"));
    if stays || allowed.iter().any(|prefix| *prefix == "*" || is_below(prefix)) {
        return None;
    }
    Some(Problem::new(file, word.line, format!("{} must not import crate::{path}", from.replace('/', "::"))))
}

/// A path or a macro that only the command may use.
fn command_only(file: &str, word: &Word) -> Option<Problem> {
    let library = ["crates/layout/src/", "crates/kernels/src/", "crates/lapidary/src/"];
    let excepted = COMMAND_ONLY_PLACES.iter().any(|place| place.path == file && place.word == Some(&word.text));
    if excepted || !library.iter().any(|folder| file.starts_with(folder)) {
        return None;
    }
    let matches = |name: &str| match word.kind {
        Kind::Path => word.text == name || word.text.starts_with(&format!("{name}::")),
        Kind::Macro => word.text == name,
        Kind::Identifier | Kind::Text => false,
    };
    let (name, deed) = COMMAND_ONLY.iter().find(|entry| matches(entry.0))?;
    Some(Problem::new(file, word.line, format!("{name} {deed}, which only the command may do")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        check(&Repository::of(&[(file, text)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn modules_import_downwards_alone() {
        let text = "//! x\nuse crate::train::Recipe;\nuse crate::model::gguf::File;\nuse crate::text::guard;\n";
        let in_text = found("crates/lapidary/src/text/tokenizer.rs", text);
        assert_eq!(in_text, ["crates/lapidary/src/text/tokenizer.rs:2: text must not import crate::train::Recipe"]);
        let model = "use crate::{Error, eval::{standardise::S, sts::T}};";
        let in_model = found("crates/lapidary/src/model.rs", model);
        assert_eq!(in_model, ["crates/lapidary/src/model.rs:1: model must not import crate::eval::sts::T"]);
        let leaf = found("crates/lapidary/src/eval/standardise.rs", "use crate::model::X; use crate::eval::error::E;");
        assert_eq!(leaf.len(), 1, "{leaf:?}");
        assert_eq!(found("crates/lapidary/src/new.rs", "use crate::Error;").len(), 1);
        let tests = "#[cfg(test)] mod tests { use crate::train::X; }";
        assert_eq!(found("crates/lapidary/src/data/mod.rs", tests), Vec::<String>::new());
    }

    #[test]
    fn crates_use_what_they_may() {
        let manifests = [
            ("crates/layout/Cargo.toml", "[dependencies]\nkernels = { path = \"\" }\nserde = \"1\"\n"),
            ("crates/kernels/Cargo.toml", "[dependencies]\ncandle-core.workspace = true\n"),
            ("crates/lapidary/Cargo.toml", "[dependencies]\nlayout = \"1\"\n[dev-dependencies]\nclap = \"4\"\n"),
            ("crates/new/Cargo.toml", "[package]\nname = \"clap\"\n"),
        ];
        let problems = check(&Repository::of(&manifests));
        let found: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0], "crates/lapidary/Cargo.toml:4: only the crate cli may use clap");
        assert_eq!(found[1], "crates/layout/Cargo.toml:2: the crate layout must not use kernels");
        assert!(found[2].starts_with("crates/new/Cargo.toml:1: "));
    }

    #[test]
    fn the_library_neither_prints_nor_reads_the_environment() {
        let text = "fn f() { println!(\"x\"); let e = std::env::var(\"X\"); let m = env!(\"CARGO\"); x.print(); }";
        assert_eq!(found("crates/layout/src/a.rs", text).len(), 2);
        assert_eq!(found("crates/cli/src/a.rs", text), Vec::<String>::new());
        assert_eq!(found("crates/layout/tests/a.rs", text), Vec::<String>::new());
    }
}
