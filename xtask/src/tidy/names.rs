//! Which names may stand where: families, methods, the tensor library, `unsafe`, package registries.

use super::Problem;
use super::imports::is_test_file;
use super::repository::Repository;
use super::source::{Kind, Word};
use super::tables::{
    Allowed, COMMAND_ONLY_PLACES, EVERYDAY_METHODS, FAMILIES, FAMILY_PLACES, METHOD_PLACES, REGISTRIES, TENSOR_LIBRARY,
};

pub(super) fn check(repository: &Repository) -> Vec<Problem> {
    let mut methods = repository.methods();
    methods.retain(|name| !EVERYDAY_METHODS.contains(&name.as_str()));
    let mut problems = Vec::new();
    for (file, source) in &repository.sources {
        for word in &source.words {
            if word.kind == Kind::Identifier && word.text == "unsafe" && !file.starts_with(TENSOR_LIBRARY.1) {
                let message = format!("unsafe may stand in {} alone", TENSOR_LIBRARY.1);
                problems.push(Problem::new(file, word.line, message));
            }
            if is_test_file(file) || word.in_test || !matches!(word.kind, Kind::Identifier | Kind::Text) {
                continue;
            }
            if let Some(family) = family_in(&word.text).filter(|_| !is_allowed(FAMILY_PLACES, file, word)) {
                let message = format!("{:?}: the model family {family} may not be named here", word.text);
                problems.push(Problem::new(file, word.line, message));
            }
            let is_method = word.kind == Kind::Text && methods.contains(&word.text);
            if is_method && !is_allowed(METHOD_PLACES, file, word) {
                let message = format!("the method {:?} may not be named here", word.text);
                problems.push(Problem::new(file, word.line, message));
            }
        }
    }
    for (file, text) in &repository.texts {
        problems.extend(tensor_library(file, text));
        problems.extend(registries(file, text));
    }
    problems
}

/// The family that a word names: inside it, or, where the family's name is short, as a whole run of letters.
fn family_in(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    let mut runs = word.split(|character: char| !character.is_ascii_alphabetic());
    let short = |family: &str| family.len() < 4;
    let named = |family: &&&str| if short(family) { runs.any(|run| run == **family) } else { word.contains(**family) };
    FAMILIES.iter().find(named).copied()
}

fn is_allowed(places: &[Allowed], file: &str, word: &Word) -> bool {
    let fits = |place: &&Allowed| place.word.is_none_or(|allowed| allowed == word.text);
    places.iter().filter(fits).any(|place| file.starts_with(place.path))
}

/// The tensor library is named by its crate and in the one line of the workspace that gives its version.
fn tensor_library(file: &str, text: &str) -> Vec<Problem> {
    let (library, home) = TENSOR_LIBRARY;
    let is_code = file.ends_with(".rs") || file.ends_with("Cargo.toml");
    if !is_code || file.starts_with(home) || file.starts_with("xtask/") {
        return Vec::new();
    }
    let mut lines: Vec<usize> = (1..).zip(text.lines()).filter(|(_, l)| l.contains(library)).map(|(n, _)| n).collect();
    if file == "Cargo.toml" && !lines.is_empty() {
        lines.remove(0);
    }
    let message = format!("the tensor library may be named in {home} alone");
    lines.into_iter().map(|line| Problem::new(file, line, message.clone())).collect()
}

fn registries(file: &str, text: &str) -> Vec<Problem> {
    let names_one = |line: &str| REGISTRIES.iter().any(|(name, end)| line.contains(&format!("{name}.{end}")));
    let lines = (1..).zip(text.lines()).filter(|(_, line)| names_one(line));
    lines.map(|(line, _)| Problem::new(file, line, "the host name of a package registry may not stand here")).collect()
}

/// Exceptions for files that are no more.
pub(super) fn unused_places(repository: &Repository) -> Vec<Problem> {
    let places = FAMILY_PLACES
        .iter()
        .chain(METHOD_PLACES)
        .chain(COMMAND_ONLY_PLACES)
        .filter(|place| place.path.ends_with(".rs"));
    let gone = places.filter(|place| !repository.sources.contains_key(place.path));
    let message = |place: &Allowed| format!("no such file, but an exception for it ({}) in xtask", place.reason);
    gone.map(|place| Problem::new(place.path, 1, message(place))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: (&str, &str) = ("crates/layout/src/methods/a.rs", "//! A.\npub(crate) const NAME: &str = \"gem\";\n");

    fn found(file: &str, text: &str) -> Vec<String> {
        check(&Repository::of(&[METHOD, (file, text)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn families_are_named_in_their_place_alone() {
        let file = "crates/lapidary/src/train.rs";
        assert_eq!(found(file, "// Qwen\nfn is_qwen3() {}\n").len(), 1);
        assert_eq!(found(file, "const A: &str = \"SmolLM2\";").len(), 1);
        assert_eq!(found(file, "const A: &str = \"phi-3\"; fn graphics() { philosophy() }").len(), 1);
        assert_eq!(found("crates/lapidary/src/model/hf/mod.rs", "fn is_qwen3() {}"), Vec::<String>::new());
        assert_eq!(found("crates/lapidary/src/model/config.rs", "enum A { Llama3 }"), Vec::<String>::new());
        assert_eq!(found("crates/lapidary/src/model/config.rs", "enum A { Llama4 }").len(), 1);
        assert_eq!(found(file, "#[cfg(test)] mod tests { fn qwen() {} }"), Vec::<String>::new());
    }

    #[test]
    fn methods_are_named_in_their_place_alone() {
        let text = "const A: &str = \"gem\"; const B: &str = \"gem.json\"; fn gem() {}";
        let message = "crates/lapidary/src/train.rs:1: the method \"gem\" may not be named here";
        assert_eq!(found("crates/lapidary/src/train.rs", text), [message]);
        assert_eq!(found("crates/cli/src/commands.rs", text), Vec::<String>::new());
    }

    #[test]
    fn the_tensor_library_and_unsafe_stay_in_their_crate() {
        let text = "use candle_core::Tensor;\nunsafe fn f() {}\n";
        assert_eq!(found("crates/lapidary/src/a.rs", text).len(), 2);
        assert_eq!(found("crates/kernels/src/a.rs", text), Vec::<String>::new());
        let manifest = "candle-core = \"0\"\nother = \"1\"\n";
        assert_eq!(found("Cargo.toml", manifest), Vec::<String>::new());
        assert_eq!(found("Cargo.toml", &manifest.repeat(2)).len(), 1);
        assert_eq!(found("crates/cli/Cargo.toml", manifest).len(), 1);
    }

    #[test]
    fn registries_are_not_named_by_host() {
        let host = ["pypi", "org"].join(".");
        assert_eq!(found("docs.md", &format!("see {host}/simple\n")).len(), 1);
        assert_eq!(found("docs.md", "from PyPI\n"), Vec::<String>::new());
    }

    #[test]
    fn an_exception_for_a_file_that_is_gone_is_reported() {
        let places = FAMILY_PLACES
            .iter()
            .chain(METHOD_PLACES)
            .chain(COMMAND_ONLY_PLACES)
            .filter(|place| place.path.ends_with(".rs"))
            .count();
        assert_eq!(unused_places(&Repository::of(&[])).len(), places);
    }
}
