//! Evaluation data in the column layout of the Hugging Face `mteb/*` and MMLU data sets.

use std::path::{Path, PathBuf};

use super::error::DataError;
use super::row::Row;
use super::source::{open_text, read_capped};
use super::table::Table;

/// Largest raw text file that is read whole.
const MAX_TEXT_BYTES: u64 = 1 << 30;
/// Extensions a split may be stored under, in order of preference.
pub const SPLIT_EXTENSIONS: [&str; 6] = ["jsonl.gz", "jsonl", "parquet", "csv.gz", "csv", "tsv"];

/// A text with its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledText {
    /// The text.
    pub text: String,
    /// The class.
    pub label: String,
    /// The name of the class, where the file has a column `label_text`.
    pub label_text: Option<String>,
}

/// A question with its possible answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultipleChoice {
    /// The subject.
    pub subject: String,
    /// The question.
    pub question: String,
    /// The possible answers, at least two.
    pub choices: Vec<String>,
    /// Index of the right answer in `choices`.
    pub answer: usize,
}

/// Folders of a task that may hold its splits, as repositories on the hub have them.
pub const SPLIT_FOLDERS: [&str; 3] = ["", "data", "default"];

/// The file that holds `split` of the task in `dir`, e.g. `test.jsonl.gz`; or of Parquet shards
/// (`test-00000-of-00002.parquet`) the first, which stands for all.
///
/// # Errors
/// No such file in any of the folders under any of the extensions.
pub fn split_file(dir: &Path, split: &str) -> Result<PathBuf, DataError> {
    let folders = || SPLIT_FOLDERS.iter().map(|folder| dir.join(folder));
    let names = || SPLIT_EXTENSIONS.iter().map(|extension| format!("{split}.{extension}"));
    let whole = folders().find_map(|folder| names().map(|name| folder.join(name)).find(|path| path.is_file()));
    whole
        .or_else(|| folders().find_map(|folder| shards(&folder, split).into_iter().next()))
        .ok_or_else(|| DataError::NoSplit { dir: dir.to_owned(), split: split.to_owned() })
}

/// A shard's number and their count, of a file name such as `test-00000-of-00002.parquet`; a hash may follow the count.
pub fn shard_of(name: &str, split: &str) -> Option<(usize, usize)> {
    let (index, rest) = name.strip_prefix(split)?.strip_prefix('-')?.strip_suffix(".parquet")?.split_once("-of-")?;
    let (of, hash) = rest.split_once('-').unwrap_or((rest, ""));
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (index, of) = (number(index)?, number(of)?);
    (index < of && hash.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some((index, of))
}

/// The shards of a split in `folder`, in order.
fn shards(folder: &Path, split: &str) -> Vec<PathBuf> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<(usize, PathBuf)> =
        names.filter_map(|name| Some((shard_of(name.to_str()?, split)?.0, folder.join(&name)))).collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// `path`, or all shards where it is one of them.
fn with_shards(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // The name of a split may hold hyphens too.
    let split = name.rsplit_once("-of-").and_then(|(before, _)| before.rsplit_once('-')).map_or("", |(split, _)| split);
    let Some((_, of)) = shard_of(name, split) else { return Ok(vec![path.to_owned()]) };
    let folder = path.parent().unwrap_or(Path::new(""));
    let found = shards(folder, split);
    if found.len() != of {
        let (dir, split) = (folder.to_owned(), split.to_owned());
        return Err(DataError::MissingShard { dir, split, of, found: found.len() });
    }
    Ok(found)
}

/// Reads `text`, `label` and, where there is one, `label_text`.
///
/// # Errors
/// Unreadable files; a missing or ill-typed field, with its row; no rows.
pub fn load_classification(path: &Path) -> Result<Vec<LabelledText>, DataError> {
    load_rows(path, &["text", "label"], &["label_text"], |row| {
        let label_text = if row.has("label_text") { row.optional_text("label_text")?.map(str::to_owned) } else { None };
        Ok(LabelledText { text: row.text("text")?.to_owned(), label: row.name("label")?, label_text })
    })
}

/// Reads `subject`, `question`, `choices` and `answer` (the index of the right choice).
///
/// # Errors
/// Unreadable files; a missing or ill-typed field or an answer that is no choice, with its row; no
/// rows.
pub fn load_multiple_choice(path: &Path) -> Result<Vec<MultipleChoice>, DataError> {
    let columns = ["subject", "question", "choices", "answer"];
    load_rows(path, &columns, &[], |row| {
        let choices = row.texts("choices")?;
        if choices.len() < 2 {
            return Err(row.wrong("choices", "at least two choices"));
        }
        let answer = usize::try_from(row.integer("answer")?)
            .ok()
            .filter(|&answer| answer < choices.len())
            .ok_or_else(|| row.wrong("answer", "the index of a choice, counted from 0"))?;
        Ok(MultipleChoice {
            subject: row.text("subject")?.to_owned(),
            question: row.text("question")?.to_owned(),
            choices,
            answer,
        })
    })
}

/// Reads `question`, `choices` (an object of the lists `text` and `label`) and `answerKey`, as ARC has them; the
/// subject is empty.
///
/// # Errors
/// As [`load_multiple_choice`].
pub fn load_answer_choice(path: &Path) -> Result<Vec<MultipleChoice>, DataError> {
    load_rows(path, &["question", "choices", "answerKey"], &[], |row| {
        let (choices, labels) = (row.inner_texts("choices", "text")?, row.inner_texts("choices", "label")?);
        let key = row.text("answerKey")?;
        let answer = labels.iter().position(|label| label == key).filter(|answer| *answer < choices.len());
        let answer = answer.ok_or_else(|| row.wrong("answerKey", "one of the labels of the choices"))?;
        Ok(MultipleChoice { subject: String::new(), question: row.text("question")?.to_owned(), choices, answer })
    })
}

/// Reads `text`.
///
/// # Errors
/// Unreadable files; a missing or ill-typed field, with its row; no rows.
pub fn load_texts(path: &Path) -> Result<Vec<String>, DataError> {
    load_rows(path, &["text"], &[], |row| Ok(row.text("text")?.to_owned()))
}

/// The columns of a data file.
///
/// # Errors
/// Unreadable files.
pub fn columns(path: &Path) -> Result<Vec<String>, DataError> {
    Ok(Table::open(path)?.columns(false).unwrap_or_default())
}

/// Reads a whole text file (WikiText's `wiki.test.raw`), plain or compressed (.gz, .zst).
///
/// # Errors
/// Unreadable, binary or empty files, invalid UTF-8 (with its line), more than 1 GiB.
pub fn load_text(path: &Path) -> Result<String, DataError> {
    let bytes = read_capped(path, open_text(path)?, MAX_TEXT_BYTES)?;
    if bytes.is_empty() {
        return Err(empty(path));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..offset];
        let line_start = before.iter().rposition(|&byte| byte == b'\n');
        let num_newlines = before.iter().filter(|&&byte| byte == b'\n').count();
        DataError::Utf8 {
            at: super::RowRef { file: path.into(), row: num_newlines as u64 + 1 },
            offset: offset - line_start.map_or(0, |start| start + 1),
        }
    })
}

/// Reads all rows of one file, or of all shards where it is one: the `required` columns and those of the `optional` it has.
pub(super) fn load_rows<T>(
    path: &Path,
    required: &[&str],
    optional: &[&str],
    convert: impl Fn(&Row) -> Result<T, DataError>,
) -> Result<Vec<T>, DataError> {
    let mut rows = Vec::new();
    for file in with_shards(path)? {
        let mut table = Table::open(&file)?;
        let found = table.columns(false).unwrap_or_default();
        let mut names = required.to_vec();
        names.extend(optional.iter().filter(|name| found.iter().any(|f| f == *name)));
        table.select(&names)?;
        while let Some(row) = table.next_row()? {
            rows.push(convert(&row)?);
        }
    }
    if rows.is_empty() {
        return Err(empty(path));
    }
    Ok(rows)
}

fn empty(path: &Path) -> DataError {
    DataError::Empty { paths: path.display().to_string(), num_blank: 0 }
}
