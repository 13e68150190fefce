//! A Rust file as the words of its code: comments left out, tests marked.

use std::str::FromStr as _;

use proc_macro2::{Delimiter, Literal, TokenStream, TokenTree};

/// What a word of code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An identifier or a keyword.
    Identifier,
    /// The content of a string literal, escapes as they are written.
    Text,
    /// The name of a macro where it is called.
    Macro,
    /// A path from `crate` or `std`, such as `crate::model::gguf::GgufFile`, one for each leaf of a `use` tree.
    Path,
}

/// A word of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) kind: Kind,
    pub(super) text: String,
    /// Counted from 1.
    pub(super) line: usize,
    /// Whether it stands in an item under `#[cfg(test)]`.
    pub(super) in_test: bool,
}

/// A Rust file.
pub(super) struct Source {
    pub(super) text: String,
    pub(super) words: Vec<Word>,
    /// Lines before the first item under `#[cfg(test)]` that has a body.
    pub(super) num_lines_before_tests: usize,
    /// Why the file could not be read as Rust.
    pub(super) errors: Vec<String>,
}

impl Source {
    pub(super) fn parse(text: &str) -> Self {
        let mut reader = Reader { words: Vec::new(), first_test_line: None };
        let mut errors = Vec::new();
        match TokenStream::from_str(text) {
            Ok(tokens) => reader.read(tokens, false),
            Err(error) => errors.push(format!("expected Rust: {error}")),
        }
        let num_lines = text.lines().count();
        let num_lines_before_tests = reader.first_test_line.map_or(num_lines, |line| line - 1);
        Self { text: text.to_owned(), words: reader.words, num_lines_before_tests, errors }
    }
}

struct Reader {
    words: Vec<Word>,
    first_test_line: Option<usize>,
}

impl Reader {
    fn read(&mut self, tokens: TokenStream, in_test: bool) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        // the line of a `#[cfg(test)]` whose item has not ended
        let mut test_since = None;
        for (at, tree) in trees.iter().enumerate() {
            let in_test = in_test || test_since.is_some();
            match tree {
                TokenTree::Group(group) if is_attribute(&trees[..at], group.delimiter()) => {
                    let content = group.stream().to_string();
                    if content.starts_with("doc") {
                        continue;
                    }
                    if content.replace(' ', "") == "cfg(test)" && trees[at - 1].to_string() == "#" {
                        test_since = Some(group.span_open().start().line);
                    }
                    self.read(group.stream(), in_test);
                }
                TokenTree::Group(group) => {
                    self.read(group.stream(), in_test);
                    if group.delimiter() == Delimiter::Brace {
                        self.first_test_line = self.first_test_line.or(test_since.take());
                    }
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => test_since = None,
                TokenTree::Punct(_) => {}
                TokenTree::Ident(_) => self.identifier(&trees, at, in_test),
                TokenTree::Literal(literal) => {
                    if let Some(text) = string_content(literal) {
                        self.push(Kind::Text, text, literal.span().start().line, in_test);
                    }
                }
            }
        }
    }

    fn identifier(&mut self, trees: &[TokenTree], at: usize, in_test: bool) {
        let (text, line) = (trees[at].to_string(), trees[at].span().start().line);
        if (text == "crate" || text == "std") && is_path_separator(&trees[at + 1..]) {
            for path in paths(&trees[at + 3..]) {
                self.push(Kind::Path, format!("{text}::{path}"), line, in_test);
            }
        }
        if is_punct(trees.get(at + 1), '!') && matches!(trees.get(at + 2), Some(TokenTree::Group(_))) {
            self.push(Kind::Macro, text.clone(), line, in_test);
        }
        self.push(Kind::Identifier, text, line, in_test);
    }

    fn push(&mut self, kind: Kind, text: String, line: usize, in_test: bool) {
        self.words.push(Word { kind, text, line, in_test });
    }
}

/// Whether a group after these tokens is that of `#[…]` or `#![…]`.
fn is_attribute(before: &[TokenTree], delimiter: Delimiter) -> bool {
    let before = if is_punct(before.last(), '!') { &before[..before.len() - 1] } else { before };
    delimiter == Delimiter::Bracket && is_punct(before.last(), '#')
}

fn is_punct(tree: Option<&TokenTree>, character: char) -> bool {
    matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

fn is_path_separator(trees: &[TokenTree]) -> bool {
    is_punct(trees.first(), ':') && is_punct(trees.get(1), ':')
}

/// The paths that a `use` tree spans, or the one path of an expression.
fn paths(trees: &[TokenTree]) -> Vec<String> {
    match trees.first() {
        Some(TokenTree::Ident(name)) if is_path_separator(&trees[1..]) => {
            let rest = paths(&trees[3..]);
            rest.iter().map(|path| format!("{name}::{path}")).collect()
        }
        Some(TokenTree::Ident(name)) => vec![name.to_string()],
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            inner.split(|tree| is_punct(Some(tree), ',')).filter(|part| !part.is_empty()).flat_map(paths).collect()
        }
        // a glob, or the type parameters of a function call
        _ => vec!["*".to_owned()],
    }
}

/// What stands between the quotes of a string, byte string or raw string.
fn string_content(literal: &Literal) -> Option<String> {
    let text = literal.to_string();
    let is_string = text.trim_start_matches(['b', 'c', 'r', '#']).starts_with('"');
    let (start, end) = (text.find('"')?, text.rfind('"')?);
    (is_string && start < end).then(|| text[start + 1..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, kind: Kind) -> Vec<(String, usize, bool)> {
        let source = Source::parse(text);
        assert_eq!(source.errors, Vec::<String>::new());
        let of_kind = source.words.into_iter().filter(|word| word.kind == kind);
        of_kind.map(|word| (word.text, word.line, word.in_test)).collect()
    }

    #[test]
    fn comments_are_no_words_and_strings_are() {
        let text = "//! llama\n/// llama\nfn f() {\n    // llama\n    g(\"a\", r#\"b\"c\"#, b\"d\", 'e', 1);\n}\n";
        let found = words(text, Kind::Text);
        assert_eq!(found, [("a".into(), 5, false), ("b\"c".into(), 5, false), ("d".into(), 5, false)]);
        assert!(words(text, Kind::Identifier).iter().all(|word| word.0 != "llama"));
    }

    #[test]
    fn test_items_are_marked() {
        let text = "#[cfg(test)]\nmod other;\nfn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
        let marked: Vec<String> = words(text, Kind::Identifier).into_iter().filter(|w| w.2).map(|w| w.0).collect();
        assert_eq!(marked, ["mod", "other", "mod", "tests", "fn", "b"]);
        assert_eq!(Source::parse(text).num_lines_before_tests, 3);
    }

    #[test]
    fn use_trees_become_paths() {
        let text = "use crate::a::{self, B, c::{D, E as F}};\nuse crate::G;\nfn f() { crate::h::i::<u8>(std::env::args()) }\n\
                    pub(crate) fn g() {}\nuse std::io::*;\n";
        let found: Vec<String> = words(text, Kind::Path).into_iter().map(|word| word.0).collect();
        let expected = ["crate::a::self", "crate::a::B", "crate::a::c::D", "crate::a::c::E", "crate::G"];
        assert_eq!(found[..5], expected);
        assert_eq!(found[5..], ["crate::h::i::*", "std::env::args", "std::io::*"]);
    }

    #[test]
    fn macros_are_told_from_negation() {
        let found = words("fn f() { println!(\"x\"); if a != b {} if !c {} }", Kind::Macro);
        assert_eq!(found, [("println".into(), 1, false)]);
    }

    #[test]
    fn what_is_no_rust_is_an_error() {
        assert_eq!(Source::parse("fn f() {").errors.len(), 1);
    }
}
