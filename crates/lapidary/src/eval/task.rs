//! Evaluation tasks as directories of data: what kind each is, and the scores of a model on it, named as the `mteb`
//! package and lm-evaluation-harness name them.

pub mod embedding;
pub mod language;
mod sampled;

use crate::Error;
use crate::data::DataError;
use crate::data::tasks::{self, split_file};
use std::path::Path;

/// What a task asks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Similarity of pairs: Spearman's correlation of cosines.
    Sts,
    /// Logistic regression on a few samples a label.
    Classification,
    /// Mini-batch k-means.
    Clustering,
    /// Documents for queries.
    Retrieval,
    /// A few documents of each query put in order.
    Reranking,
    /// Pairs that belong together.
    PairClassification,
    /// Summaries by machines, against people's.
    Summarization,
    /// The letter of the answer after five examples (MMLU).
    LetterChoice,
    /// The most likely answer text (ARC).
    AnswerChoice,
    /// The most likely ending (HellaSwag).
    EndingChoice,
    /// The last word of a text (LAMBADA).
    LastWord,
    /// Perplexity of a raw text file.
    Perplexity,
}

/// Scores of one split; the first is the main one.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskScore {
    /// The split that was scored.
    pub split: &'static str,
    /// Names as the official packages have them; shares are in 0..=1.
    pub metrics: Vec<(&'static str, f64)>,
    /// Number of texts or questions that were scored.
    pub num_scored: usize,
}

/// Metrics, the main one first, and the number of texts or questions.
type Scores = (Vec<(&'static str, f64)>, usize);

const TEST: &str = "test";
const VALIDATION: &str = "validation";
/// The raw text of a perplexity task.
const RAW_TEXT: [&str; 2] = ["wiki.test.raw.gz", "wiki.test.raw"];

impl TaskKind {
    /// What the directory holds; `None` when it is no task.
    ///
    /// # Errors
    /// When the file of its test split cannot be read.
    pub fn of(dir: &Path) -> Result<Option<Self>, Error> {
        if RAW_TEXT.iter().any(|name| dir.join(name).is_file()) {
            return Ok(Some(Self::Perplexity));
        }
        if split_file(dir, "corpus").is_ok() && dir.join("qrels").is_dir() {
            return Ok(Some(Self::Retrieval));
        }
        // The labels of HellaSwag's test split are secret: people score its validation split.
        let Some(file) = split_file(dir, TEST).or_else(|_| split_file(dir, VALIDATION)).ok() else { return Ok(None) };
        let is_test = split_file(dir, TEST).is_ok();
        let columns = tasks::columns(&file)?;
        if columns == ["text"] && is_test {
            return Ok(Some(Self::LastWord));
        }
        let has = |names: &[&str]| names.iter().all(|name| columns.iter().any(|column| column == name));
        let kinds: [(&[&str], Self); 11] = [
            (&["sentence1", "sentence2", "score"], Self::Sts),
            (&["sentence1", "sentence2", "labels"], Self::PairClassification),
            (&["sentence1", "sentence2", "label"], Self::PairClassification),
            (&["sent1", "sent2", "labels"], Self::PairClassification),
            (&["sentences", "labels"], Self::Clustering),
            (&["query", "positive", "negative"], Self::Reranking),
            (&["human_summaries", "machine_summaries", "relevance"], Self::Summarization),
            (&["text", "label"], Self::Classification),
            (&["subject", "question", "choices", "answer"], Self::LetterChoice),
            (&["question", "choices", "answerKey"], Self::AnswerChoice),
            (&["ctx_a", "ctx_b", "endings", "label"], Self::EndingChoice),
        ];
        let kind = kinds.into_iter().find(|(names, _)| has(names)).map(|(_, kind)| kind);
        Ok(kind.filter(|kind| is_test || *kind == Self::EndingChoice))
    }

    /// Whether the task asks for vectors; the others ask for likelihoods.
    pub fn is_embedding(self) -> bool {
        !matches!(
            self,
            Self::LetterChoice | Self::AnswerChoice | Self::EndingChoice | Self::LastWord | Self::Perplexity
        )
    }
}

/// The tasks below `root`, by name; of those named alone where `wanted` names any.
///
/// # Errors
/// When a directory, or the test file of a task that is wanted, cannot be read.
pub fn local_tasks(root: &Path, wanted: &[String]) -> Result<Vec<(String, TaskKind)>, Error> {
    let cannot = |source| DataError::Open { path: root.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir()
            && (wanted.is_empty() || wanted.contains(&name))
            && let Some(kind) = TaskKind::of(&path)?
        {
            found.push((name, kind));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// BLAKE3 of the files that a task is read from, with their names: scores of other data are other scores.
///
/// # Errors
/// When a file cannot be read.
pub fn data_fingerprint(dir: &Path) -> Result<String, Error> {
    let cannot = |source| DataError::Open { path: dir.to_owned(), source };
    let mut files = Vec::new();
    let folders = tasks::SPLIT_FOLDERS.into_iter().chain(["qrels"]).map(|folder| dir.join(folder));
    for folder in folders.filter(|folder| folder.is_dir()) {
        for entry in std::fs::read_dir(folder).map_err(cannot)? {
            let path = entry.map_err(cannot)?.path();
            if path.is_file() && path.extension().is_none_or(|extension| extension != "json") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for path in &files {
        hasher.update(path.file_name().unwrap_or_default().to_string_lossy().as_bytes());
        hasher.update(&std::fs::read(path).map_err(|source| DataError::Open { path: path.clone(), source })?);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
