//! Pairs of sentences with a similarity score, in the layout of the `mteb` STS data sets.

use std::path::Path;

use super::error::DataError;
use super::tasks::{load_rows, split_file};

/// Two sentences and how similar people find them.
#[derive(Clone, Debug, PartialEq)]
pub struct StsPair {
    /// One sentence.
    pub sentence1: String,
    /// The other.
    pub sentence2: String,
    /// Similarity, higher is closer; finite, on the data set's own scale (0 to 5 in STSBenchmark).
    pub score: f64,
}

/// The pairs of one split.
#[derive(Clone, Debug, PartialEq)]
pub struct StsPairs {
    /// The pairs in file order; at least one.
    pub pairs: Vec<StsPair>,
}

impl StsPairs {
    /// Reads the columns `sentence1`, `sentence2` and `score` of a JSON Lines, CSV or Parquet file.
    ///
    /// # Errors
    /// Unreadable files; a missing or ill-typed field, with its row; no rows.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let columns = ["sentence1", "sentence2", "score"];
        let pairs = load_rows(path, &columns, &[], |row| {
            Ok(StsPair {
                sentence1: row.text("sentence1")?.to_owned(),
                sentence2: row.text("sentence2")?.to_owned(),
                score: row.number("score")?,
            })
        })?;
        Ok(Self { pairs })
    }

    /// Reads `split` of the data set in `dir`, e.g. `STSBenchmark/test.jsonl.gz`.
    ///
    /// # Errors
    /// As [`StsPairs::load`], and no file of that split.
    pub fn load_split(dir: &Path, split: &str) -> Result<Self, DataError> {
        Self::load(&split_file(dir, split)?)
    }
}
