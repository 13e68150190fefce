//! The rules of the house that the compiler does not know: what every file must have, and which names stand where.

mod imports;
mod names;
mod repository;
mod source;
mod tables;

use std::fmt;
use std::path::Path;

use repository::Repository;

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    file: String,
    line: usize,
    message: String,
}

impl Problem {
    fn new(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// Checks every file that git tracks or would add.
pub(crate) fn check(root: &Path) -> Result<Vec<Problem>, String> {
    let repository = Repository::read(root)?;
    let mut problems = files(&repository);
    problems.extend(documents(&repository));
    problems.extend(imports::check(&repository));
    problems.extend(names::check(&repository));
    problems.extend(names::unused_places(&repository));
    Ok(problems)
}

/// Every source file says in its first line what it is, and is short enough to be read at once.
fn files(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, source) in &repository.sources {
        if !source.text.starts_with("//! ") {
            problems.push(Problem::new(file, 1, "expected the first line to say what the file is: //! …"));
        }
        let length = source.num_lines_before_tests;
        let long = tables::LONG_FILES.iter().find(|entry| entry.0 == file);
        let limit = long.map_or(tables::MAX_LINES, |entry| entry.1);
        if length > limit {
            let message = format!("expected at most {limit} lines before the tests, found {length}: split the file");
            problems.push(Problem::new(file, length, message));
        } else if long.is_some() && length <= tables::MAX_LINES {
            problems.push(Problem::new(file, 1, "no longer too long: take it out of LONG_FILES in xtask"));
        }
        for error in &source.errors {
            problems.push(Problem::new(file, 1, error));
        }
    }
    problems
}

/// The documents know every crate, every method and every script.
fn documents(repository: &Repository) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut expect = |document: &str, what: &str, names: Vec<String>| {
        let text = repository.texts.get(document).map_or("", String::as_str);
        for name in names.iter().filter(|name| !text.contains(&format!("`{name}`"))) {
            problems.push(Problem::new(document, 1, format!("expected the {what} `{name}` to be named")));
        }
    };
    expect("ARCHITECTURE.md", "crate", repository.crates());
    expect("ARCHITECTURE.md", "method", repository.methods());
    expect("scripts/README.md", "script", repository.scripts());
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(files_of: &[(&str, &str)]) -> Vec<String> {
        files(&Repository::of(files_of)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_source_file_opens_with_its_purpose() {
        let found = messages(&[("a.rs", "//! What it is.\n"), ("b.rs", "// x\n//! late\n"), ("c.rs", "")]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("b.rs:1: ") && found[1].starts_with("c.rs:1: "));
    }

    #[test]
    fn tests_at_the_end_do_not_count_as_length() {
        let code = format!("//! x\n{}", "const A: u8 = 0;\n".repeat(tables::MAX_LINES - 1));
        let tests = format!("{code}#[cfg(test)]\nmod tests {{\n}}\n");
        assert_eq!(messages(&[("a.rs", &code), ("b.rs", &tests)]), Vec::<String>::new());
        let found = messages(&[("a.rs", &format!("{code}const B: u8 = 0;\n"))]);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn documents_name_crates_methods_and_scripts() {
        let repository = Repository::of(&[
            ("crates/one/Cargo.toml", "[package]"),
            ("crates/two/Cargo.toml", "[package]"),
            ("crates/layout/src/methods/a.rs", "//! A.\npub(crate) const NAME: &str = \"a-b\";\n"),
            ("scripts/x.py", ""),
            ("scripts/README.md", "- `x.py` writes"),
            ("ARCHITECTURE.md", "the crate `one`"),
        ]);
        let found: Vec<String> = documents(&repository).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("crate `two`") && found[1].contains("method `a-b`"));
    }
}
