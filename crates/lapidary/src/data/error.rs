//! What can be wrong with input data, each with the file and the line or row.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a row came from: a file and a 1-based position in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowRef {
    /// The file, as it was found on disk.
    pub file: Arc<Path>,
    /// Line number in text formats (the first line of a quoted CSV row), row number in Parquet.
    pub row: u64,
}

impl fmt::Display for RowRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.row)
    }
}

/// Errors of reading data files; every message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The specification lists no paths.
    #[error("data: expected at least one path or glob, found none")]
    NoPaths,
    /// A glob cannot be parsed.
    #[error("data: `{pattern}` is not a valid glob: {reason}")]
    Pattern {
        /// The glob as given.
        pattern: String,
        /// What the glob parser says.
        reason: String,
    },
    /// A glob matches no file.
    #[error("data: no file matches `{pattern}`")]
    NoMatch {
        /// The glob as given.
        pattern: String,
    },
    /// A file does not exist, is a directory or cannot be opened.
    #[error("{}: cannot open: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A directory stands where a file is expected.
    #[error("{}: expected a file, found a directory; name its files, e.g. `{}/*.jsonl`", path.display(), path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// None of the files a split may be stored in exists.
    #[error("{}: expected {split}.jsonl.gz, .jsonl, .parquet, .csv.gz, .csv or .tsv, or Parquet shards, found none of them", dir.display())]
    NoSplit {
        /// Folder of the task.
        dir: PathBuf,
        /// Name of the split.
        split: String,
    },
    /// Of a split in several files one is missing.
    #[error("{}: expected {of} shards {split}-00000-of-{of:05}.parquet and so on, found {found}", dir.display())]
    MissingShard {
        /// Their folder.
        dir: PathBuf,
        /// Name of the split.
        split: String,
        /// How many there have to be.
        of: usize,
        /// How many there are.
        found: usize,
    },
    /// The file name does not tell the format.
    #[error("{}: unknown format; expected .txt, .jsonl, .csv, .tsv or .parquet, optionally followed by .gz or .zst", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// Reading or decompressing failed.
    #[error("{at}: cannot read: {source}")]
    Read {
        /// The row being read.
        at: RowRef,
        /// The reason.
        source: io::Error,
    },
    /// A text format holds NUL bytes.
    #[error("{}: expected UTF-8 text, found a binary file (NUL byte at offset {offset})", path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// Offset of the first NUL in the decompressed bytes.
        offset: usize,
    },
    /// A line or a field is not UTF-8.
    #[error("{at}: invalid UTF-8 at byte {offset} of the line or field")]
    Utf8 {
        /// The row.
        at: RowRef,
        /// Offset of the first bad byte within the line or field.
        offset: usize,
    },
    /// A row exceeds the memory allowed for one row.
    #[error("{at}: row longer than {limit_bytes} bytes")]
    TooLong {
        /// The row.
        at: RowRef,
        /// The limit.
        limit_bytes: usize,
    },
    /// A line is not valid JSON.
    #[error("{at}: invalid JSON: {reason}")]
    Json {
        /// The row.
        at: RowRef,
        /// What the JSON parser says, with the column.
        reason: String,
    },
    /// A CSV row is malformed.
    #[error("{at}: invalid CSV: {reason}")]
    Csv {
        /// The row.
        at: RowRef,
        /// What the CSV parser says.
        reason: String,
    },
    /// A Parquet file is malformed or uses an unsupported feature.
    #[error("{at}: invalid or unsupported Parquet: {reason}")]
    Parquet {
        /// The row, 0 for the file's metadata.
        at: RowRef,
        /// What the Parquet reader says.
        reason: String,
    },
    /// A named column is not there.
    #[error("{at}: column `{column}` not found; columns found: {}", found.join(", "))]
    MissingColumn {
        /// The row (the first one where a header or schema decides).
        at: RowRef,
        /// The column looked for.
        column: String,
        /// The columns there are.
        found: Vec<String>,
    },
    /// No column was named and there is no obvious one.
    #[error("{}: name the text column: expected one called `text` or a single string column, found {}", path.display(), list(found))]
    WhichColumn {
        /// The file.
        path: PathBuf,
        /// The candidates: the string columns.
        found: Vec<String>,
    },
    /// A field has the wrong type or value.
    #[error("{at}: field `{field}`: expected {expected}, found {found}")]
    Field {
        /// The row.
        at: RowRef,
        /// The column name.
        field: String,
        /// What the reader needs.
        expected: &'static str,
        /// What the row holds.
        found: String,
    },
    /// Nothing to read.
    #[error("data: no rows with text in {paths} ({num_blank} blank)")]
    Empty {
        /// The paths as given, joined.
        paths: String,
        /// Rows skipped because they were blank.
        num_blank: u64,
    },
    /// Fewer rows than an earlier run has already read.
    #[error("data: expected at least {expected} rows, found {found}; the files have changed")]
    TooFewRows {
        /// Rows to skip.
        expected: u64,
        /// Rows there are.
        found: u64,
    },
}

fn list(columns: &[String]) -> String {
    if columns.is_empty() { "none".to_owned() } else { columns.join(", ") }
}
