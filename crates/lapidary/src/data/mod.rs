//! Texts to train on and to embed: rows of text, JSON Lines, CSV and Parquet files, streamed in a
//! fixed order.

mod csv_rows;
pub mod error;
pub mod hellaswag;
mod lines;
pub mod mteb;
mod parquet_rows;
mod row;
pub mod shuffle;
mod source;
pub mod sts;
mod table;
pub mod tasks;

use std::iter::FusedIterator;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::{DataError, RowRef};
use row::Row;
pub use shuffle::ShuffleBuffer;
use table::Table;

/// Memory one row may take: a longer line, CSV row or text is an error.
pub const MAX_ROW_BYTES: usize = 16 << 20;

/// Column read when none is named.
const DEFAULT_COLUMN: &str = "text";

/// One row of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The text; never blank.
    pub text: String,
    /// A text that should embed close to `text`.
    pub positive: Option<String>,
    /// Texts that should embed far from `text`.
    pub negatives: Vec<String>,
    /// Where the row came from.
    pub source: RowRef,
}

/// Which files to read and which of their columns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Files or globs; what they match is read once each, sorted by path.
    pub paths: Vec<String>,
    /// Column of the text; by default `text`, else the only text column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Column of the positive; none is read by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positive_column: Option<String>,
    /// Column of the hard negatives, a text or a list of texts; none is read by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_column: Option<String>,
}

/// How many rows have been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Rows with text.
    pub num_rows: u64,
    /// Rows passed over because their text is blank or null, blank lines included.
    pub num_blank: u64,
}

/// Opens a data set: finds its files; rows are read as the iterator is advanced.
///
/// # Errors
/// No paths, a malformed glob, a glob that matches nothing, a missing file, a directory, a name
/// that tells no format.
pub fn open(spec: &DataSpec) -> Result<Records, DataError> {
    let files = find_files(&spec.paths)?;
    for file in &files {
        source::format(file)?;
    }
    Ok(Records { spec: spec.clone(), files, next_file: 0, current: None, stats: Stats::default(), finished: false })
}

/// The files that `patterns` name, sorted by path, each once.
fn find_files(patterns: &[String]) -> Result<Vec<PathBuf>, DataError> {
    if patterns.is_empty() {
        return Err(DataError::NoPaths);
    }
    let mut files = Vec::new();
    for pattern in patterns {
        let path = Path::new(pattern);
        // a file whose name holds `[` or `*` is taken literally
        if path.exists() || !pattern.contains(['*', '?', '[']) {
            source::open_file(path)?;
            files.push(path.to_owned());
            continue;
        }
        let matches = glob::glob(pattern)
            .map_err(|error| DataError::Pattern { pattern: pattern.clone(), reason: error.to_string() })?;
        let before = files.len();
        for matched in matches {
            let matched =
                matched.map_err(|error| DataError::Open { path: error.path().to_owned(), source: error.into() })?;
            if !matched.is_dir() {
                files.push(matched);
            }
        }
        if files.len() == before {
            return Err(DataError::NoMatch { pattern: pattern.clone() });
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// The rows of a data set in file order; ends after the first error.
pub struct Records {
    spec: DataSpec,
    files: Vec<PathBuf>,
    next_file: usize,
    current: Option<(Table, String)>,
    stats: Stats,
    finished: bool,
}

impl Records {
    /// The files, in the order they are read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Rows read so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Passes over `num_rows` rows, to continue where an earlier run stopped.
    ///
    /// # Errors
    /// Any error of the rows passed over, and fewer rows than `num_rows`.
    pub fn advance(&mut self, num_rows: u64) -> Result<(), DataError> {
        for found in 0..num_rows {
            match self.next() {
                Some(record) => drop(record?),
                None => {
                    return Err(DataError::TooFewRows { expected: num_rows, found });
                }
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Option<Record>, DataError> {
        loop {
            let Some((table, column)) = &mut self.current else {
                let Some(file) = self.files.get(self.next_file) else {
                    return self.end();
                };
                self.current = Some(open_table(file, &self.spec)?);
                self.next_file += 1;
                continue;
            };
            let Some(row) = table.next_row()? else {
                self.stats.num_blank += table.num_blank_lines();
                self.current = None;
                continue;
            };
            match record(&row, column, &self.spec)? {
                Some(record) => {
                    self.stats.num_rows += 1;
                    return Ok(Some(record));
                }
                None => self.stats.num_blank += 1,
            }
        }
    }

    fn end(&self) -> Result<Option<Record>, DataError> {
        if self.stats.num_rows > 0 {
            return Ok(None);
        }
        Err(DataError::Empty { paths: self.spec.paths.join(", "), num_blank: self.stats.num_blank })
    }
}

impl Iterator for Records {
    type Item = Result<Record, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.read().transpose();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}

impl FusedIterator for Records {}

/// Opens a file and settles which of its columns holds the text.
fn open_table(file: &Path, spec: &DataSpec) -> Result<(Table, String), DataError> {
    let mut table = Table::open(file)?;
    let pair = [&spec.positive_column, &spec.negative_column];
    let column = match &spec.column {
        Some(column) => column.clone(),
        None => default_column(file, &table, &pair)?,
    };
    let mut names = vec![column.as_str()];
    names.extend(pair.into_iter().filter_map(|name| name.as_deref()));
    table.select(&names)?;
    Ok((table, column))
}

fn default_column(file: &Path, table: &Table, taken: &[&Option<String>]) -> Result<String, DataError> {
    let mut found = table.columns(true).unwrap_or_default();
    found.retain(|name| !taken.iter().any(|taken| taken.as_ref() == Some(name)));
    let is_empty_file = table.columns(false).is_none();
    if is_empty_file || found.iter().any(|name| name == DEFAULT_COLUMN) {
        return Ok(DEFAULT_COLUMN.to_owned());
    }
    match found.as_slice() {
        [only] => Ok(only.clone()),
        _ => Err(DataError::WhichColumn { path: file.to_owned(), found }),
    }
}

/// The record of a row; `None` if its text is blank.
fn record(row: &Row, column: &str, spec: &DataSpec) -> Result<Option<Record>, DataError> {
    let Some(text) = row.optional_text(column)?.filter(|t| !t.trim().is_empty()) else {
        return Ok(None);
    };
    let positive = match &spec.positive_column {
        Some(name) => row.optional_text(name)?.map(str::to_owned),
        None => None,
    };
    let negatives = match &spec.negative_column {
        Some(name) => row.texts(name)?,
        None => Vec::new(),
    };
    Ok(Some(Record { text: text.to_owned(), positive, negatives, source: row.at.clone() }))
}

#[cfg(test)]
mod tests;
