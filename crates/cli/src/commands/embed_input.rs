//! Where the texts come from that are to be embedded: arguments, data files, or lines of standard input.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use lapidary::data::{self, DataSpec, MAX_ROW_BYTES, Records};
use std::io::{BufRead, BufReader, IsTerminal, Read, Stdin, stdin};

use crate::context::Context;

/// Where texts come from.
#[derive(Debug, Clone, Args)]
pub(crate) struct InputArgs {
    /// The texts; without any, and without --input, the lines of standard input
    #[arg(value_name = "TEXT", conflicts_with = "input")]
    pub(crate) texts: Vec<String>,
    /// Data files or globs: .txt, .jsonl, .csv, .tsv or .parquet, also .gz or .zst
    #[arg(long, short, value_name = "FILE", num_args = 1.., help_heading = "Input")]
    pub(crate) input: Vec<String>,
    /// Column of the text in data files [default: text, else the only text column]
    #[arg(long, value_name = "NAME", requires = "input", help_heading = "Input")]
    pub(crate) column: Option<String>,
}

impl InputArgs {
    /// The data files as the library names them.
    pub(crate) fn spec(&self) -> DataSpec {
        DataSpec { paths: self.input.clone(), column: self.column.clone(), ..DataSpec::default() }
    }

    /// The texts, one after the other; blank ones in files and lines are passed over.
    ///
    /// # Errors
    /// When a file cannot be opened; reading on gives the errors of rows.
    pub(crate) fn texts(&self, context: &Context) -> Result<Texts> {
        if !self.input.is_empty() {
            return Ok(Texts::Files(Box::new(data::open(&self.spec())?)));
        }
        if !self.texts.is_empty() {
            for text in self.texts.iter().filter(|text| std::path::Path::new(text).is_file()) {
                context.note(&format!("{text} is taken as a text; --input {text} reads the file of that name"));
            }
            return Ok(Texts::Arguments(self.texts.clone().into_iter()));
        }
        if stdin().is_terminal() {
            context.note("reading texts, one a line; end with Ctrl-D");
        }
        Ok(Texts::Lines(Lines { reader: BufReader::new(stdin()), num_lines: 0, num_texts: 0 }))
    }
}

/// Texts as they are read.
pub(crate) enum Texts {
    Arguments(std::vec::IntoIter<String>),
    Files(Box<Records>),
    Lines(Lines<BufReader<Stdin>>),
}

impl Iterator for Texts {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Arguments(texts) => texts.next().map(Ok),
            Self::Files(records) => records.next().map(|record| Ok(record?.text)),
            Self::Lines(lines) => lines.next_text().transpose(),
        }
    }
}

/// The lines of a stream that are not blank.
pub(crate) struct Lines<R> {
    reader: R,
    num_lines: u64,
    num_texts: u64,
}

impl<R: BufRead> Lines<R> {
    fn next_text(&mut self) -> Result<Option<String>> {
        loop {
            self.num_lines += 1;
            let at = || format!("standard input:{}", self.num_lines);
            let mut line = Vec::new();
            (&mut self.reader).take(MAX_ROW_BYTES as u64 + 1).read_until(b'\n', &mut line).with_context(at)?;
            if line.is_empty() {
                if self.num_texts == 0 {
                    bail!("standard input: expected texts, one a line, found none");
                }
                return Ok(None);
            }
            if line.len() > MAX_ROW_BYTES {
                bail!("{}: row longer than {MAX_ROW_BYTES} bytes", at());
            }
            if line.contains(&0) {
                bail!("{}: expected UTF-8 text, found a binary file (NUL byte)", at());
            }
            let line = String::from_utf8(line).map_err(|error| {
                anyhow::anyhow!("{}: invalid UTF-8 at byte {} of the line", at(), error.utf8_error().valid_up_to())
            })?;
            let text = line.trim_end_matches(['\n', '\r']);
            if !text.trim().is_empty() {
                self.num_texts += 1;
                return Ok(Some(text.to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<String>> {
        let mut lines = Lines { reader: bytes, num_lines: 0, num_texts: 0 };
        std::iter::from_fn(|| lines.next_text().transpose()).collect()
    }

    #[test]
    fn lines_are_texts_and_blank_ones_are_passed_over() {
        assert_eq!(read(b"one\r\n\n \ntwo").unwrap(), ["one", "two"]);
    }

    #[test]
    fn bad_lines_are_named() {
        for (bytes, expected) in [
            (&b""[..], "standard input: expected texts"),
            (b"\n\n", "standard input: expected texts"),
            (b"one\ntw\xffo\n", "standard input:2: invalid UTF-8 at byte 2"),
            (b"a\0b", "standard input:1: expected UTF-8 text, found a binary file"),
        ] {
            let message = read(bytes).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
