//! Evaluation tasks in the layout of the Hugging Face `mteb/*` data sets: one directory a task.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::error::DataError;
use super::row::Row;
use super::tasks::{columns, load_rows, split_file};

/// Texts to be grouped, and the group of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusteringSet {
    /// The texts.
    pub sentences: Vec<String>,
    /// The class of each.
    pub labels: Vec<String>,
}

/// A text to be grouped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledSentence {
    /// The text.
    pub sentence: String,
    /// Its class; or its classes at each level, from the widest to the narrowest.
    pub labels: Vec<String>,
}

/// Pairs of texts that belong together or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelledPairs {
    /// One text of each pair.
    pub sentence1: Vec<String>,
    /// The other.
    pub sentence2: Vec<String>,
    /// Whether they belong together.
    pub labels: Vec<bool>,
}

/// A query with documents to be put in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RerankingQuery {
    /// The query.
    pub query: String,
    /// Documents that answer it, at least one.
    pub positive: Vec<String>,
    /// Documents that do not.
    pub negative: Vec<String>,
}

/// Summaries of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Summaries {
    /// By people, at least one.
    pub human: Vec<String>,
    /// By machines, at least one.
    pub machine: Vec<String>,
    /// How relevant people found each of the latter.
    pub relevance: Vec<f64>,
}

/// Queries, documents, and which answer which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retrieval {
    /// Ids of the documents.
    pub document_ids: Vec<String>,
    /// Title and text of each document, joined by a blank as MTEB does.
    pub documents: Vec<String>,
    /// Ids of the queries.
    pub query_ids: Vec<String>,
    /// The queries.
    pub queries: Vec<String>,
    /// For each query, grades by index of the document.
    pub judgements: Vec<HashMap<usize, u32>>,
}

/// Reads `sentences` and `labels`, a set a row.
///
/// # Errors
/// Unreadable files; a missing or ill-typed field or lists of different lengths, with the row; no rows.
pub fn load_clustering(path: &Path) -> Result<Vec<ClusteringSet>, DataError> {
    load_rows(path, &["sentences", "labels"], &[], |row| {
        if !row.is_list("sentences") || !row.is_list("labels") {
            return Err(row.wrong("sentences", "a list of texts, a set in each row, and as many `labels`"));
        }
        let set = ClusteringSet { sentences: row.texts("sentences")?, labels: row.words("labels")? };
        if set.sentences.len() != set.labels.len() {
            return Err(row.wrong("labels", "as many entries as `sentences`"));
        }
        Ok(set)
    })
}

/// Reads `sentences` and `labels` as [`load_clustering`] does, all sets as one, or a text a row, whose `labels` may then
/// be a list of its classes at each level.
///
/// # Errors
/// As [`load_clustering`].
pub fn load_sentences(path: &Path) -> Result<Vec<LabelledSentence>, DataError> {
    let rows = load_rows(path, &["sentences", "labels"], &[], |row| {
        let labels = row.words("labels")?;
        if !row.is_list("sentences") {
            return Ok(vec![LabelledSentence { sentence: row.text("sentences")?.to_owned(), labels }]);
        }
        let sentences = row.texts("sentences")?;
        if sentences.len() != labels.len() {
            return Err(row.wrong("labels", "as many entries as `sentences`"));
        }
        let each = sentences.into_iter().zip(labels);
        Ok(each.map(|(sentence, label)| LabelledSentence { sentence, labels: vec![label] }).collect())
    })?;
    Ok(rows.into_iter().flatten().collect())
}

/// Reads `sentence1`, `sentence2` (or `sent1`, `sent2`) and `labels` (or `label`), as lists in one row or a pair a row.
///
/// # Errors
/// As [`load_clustering`].
pub fn load_pairs(path: &Path) -> Result<LabelledPairs, DataError> {
    let mut all = LabelledPairs::default();
    let short = columns(path)?.iter().any(|name| name == "sent1");
    let texts = if short { ["sent1", "sent2"] } else { ["sentence1", "sentence2"] };
    let rows = load_rows(path, &texts, &["labels", "label"], |row| {
        let column = if row.has("labels") { "labels" } else { "label" };
        let (first, second) = (row.texts(texts[0])?, row.texts(texts[1])?);
        let labels = row.words(column)?;
        if first.len() != second.len() || first.len() != labels.len() {
            return Err(row.wrong(column, "as many entries as there are texts"));
        }
        let labels = labels.iter().map(|label| match label.as_str() {
            "1" => Ok(true),
            "0" => Ok(false),
            _ => Err(row.wrong(column, "0 or 1")),
        });
        Ok((first, second, labels.collect::<Result<Vec<bool>, _>>()?))
    })?;
    for (first, second, labels) in rows {
        all.sentence1.extend(first);
        all.sentence2.extend(second);
        all.labels.extend(labels);
    }
    Ok(all)
}

/// Reads `query`, `positive` and `negative`. Queries without a positive document are left out: nothing can be scored.
///
/// # Errors
/// As [`load_clustering`].
pub fn load_reranking(path: &Path) -> Result<Vec<RerankingQuery>, DataError> {
    let rows = load_rows(path, &["query", "positive", "negative"], &[], |row| {
        Ok(RerankingQuery {
            query: row.text("query")?.to_owned(),
            positive: row.texts("positive")?,
            negative: row.texts("negative")?,
        })
    })?;
    Ok(rows.into_iter().filter(|query| !query.positive.is_empty()).collect())
}

/// Reads `human_summaries`, `machine_summaries` and `relevance`, the summaries of a text a row.
///
/// # Errors
/// As [`load_clustering`].
pub fn load_summaries(path: &Path) -> Result<Vec<Summaries>, DataError> {
    load_rows(path, &["human_summaries", "machine_summaries", "relevance"], &[], |row| {
        let (human, machine) = (row.texts("human_summaries")?, row.texts("machine_summaries")?);
        let relevance = row.numbers("relevance")?;
        if human.is_empty() {
            return Err(row.wrong("human_summaries", "at least one text"));
        }
        if machine.is_empty() || machine.len() != relevance.len() {
            return Err(row.wrong("relevance", "as many entries as `machine_summaries`, and at least one"));
        }
        Ok(Summaries { human, machine, relevance })
    })
}

/// Reads `corpus` (`_id` or `id`, `title`, `text`), `queries` (`_id` or `id`, `text`) and `qrels/SPLIT` (`query-id`,
/// `corpus-id`, `score`) of a directory. Queries without a judgement are left out.
///
/// # Errors
/// As [`load_clustering`]; or when a judgement names a query or a document that is not there.
pub fn load_retrieval(dir: &Path, split: &str) -> Result<Retrieval, DataError> {
    let id = |row: &Row| row.id(if row.has("_id") { "_id" } else { "id" });
    let corpus = load_rows(&split_file(dir, "corpus")?, &["text"], &["_id", "id", "title"], |row| {
        let title = if row.has("title") { row.optional_text("title")?.unwrap_or_default() } else { "" };
        let text = row.optional_text("text")?.unwrap_or_default();
        Ok((id(row)?, format!("{title} {text}").trim().to_owned()))
    })?;
    let queries = load_rows(&split_file(dir, "queries")?, &["text"], &["_id", "id"], |row| {
        Ok((id(row)?, row.text("text")?.to_owned()))
    })?;
    let index = |rows: &[(String, String)]| -> HashMap<String, usize> {
        rows.iter().enumerate().map(|(i, (id, _))| (id.clone(), i)).collect()
    };
    let (documents_by_id, queries_by_id) = (index(&corpus), index(&queries));
    let mut judgements: Vec<HashMap<usize, u32>> = vec![HashMap::new(); queries.len()];
    let columns = ["query-id", "corpus-id", "score"];
    let judged = load_rows(&split_file(&dir.join("qrels"), split)?, &columns, &[], |row| {
        let id = |column, known: &HashMap<String, usize>, expected| {
            known.get(&row.id(column)?).copied().ok_or_else(|| row.wrong(column, expected))
        };
        let query = id("query-id", &queries_by_id, "the id of a query")?;
        let document = id("corpus-id", &documents_by_id, "the id of a document")?;
        // A grade below 0 marks what must not be found: for the figures it is as if not judged.
        Ok((query, document, row.integer("score")?.clamp(0, i64::from(u32::MAX)) as u32))
    })?;
    for (query, document, grade) in judged {
        judgements[query].insert(document, grade);
    }
    let (document_ids, documents) = corpus.into_iter().unzip();
    let kept = queries.into_iter().zip(judgements).filter(|(_, judgements)| !judgements.is_empty());
    let (queries, judgements): (Vec<(String, String)>, Vec<_>) = kept.unzip();
    let (query_ids, queries) = queries.into_iter().unzip();
    Ok(Retrieval { document_ids, documents, query_ids, queries, judgements })
}

/// Reads a directory as [`load_retrieval`] does, with `top_ranked` (`query-id`, `corpus-ids`): the documents of each query
/// that are to be put in order. Queries without a positive document are left out, as by [`load_reranking`].
///
/// # Errors
/// As [`load_retrieval`]; when `top_ranked` names a document that is not there, or lacks one that is judged
/// relevant: it could not be found, and would be scored as if it did not exist.
pub fn load_top_ranked(dir: &Path, split: &str) -> Result<Vec<RerankingQuery>, DataError> {
    let data = load_retrieval(dir, split)?;
    let index =
        |ids: &[String]| -> HashMap<String, usize> { ids.iter().enumerate().map(|(i, id)| (id.clone(), i)).collect() };
    let (documents, queries) = (index(&data.document_ids), index(&data.query_ids));
    let rows = load_rows(&split_file(dir, "top_ranked")?, &["query-id", "corpus-ids"], &[], |row| {
        // A query without a judgement has nothing to be scored.
        let Some(&query) = queries.get(&row.id("query-id")?) else { return Ok(None) };
        let mut found =
            RerankingQuery { query: data.queries[query].clone(), positive: Vec::new(), negative: Vec::new() };
        let is_relevant = |document: &usize| data.judgements[query].get(document).is_some_and(|grade| *grade > 0);
        let mut seen = HashSet::new();
        for id in row.words("corpus-ids")? {
            let document = *documents.get(&id).ok_or_else(|| row.wrong("corpus-ids", "ids of documents"))?;
            if seen.insert(document) {
                let list = if is_relevant(&document) { &mut found.positive } else { &mut found.negative };
                list.push(data.documents[document].clone());
            }
        }
        if found.positive.len() != data.judgements[query].values().filter(|grade| **grade > 0).count() {
            return Err(row.wrong("corpus-ids", "each document that is relevant for the query"));
        }
        Ok(Some(found).filter(|found| !found.positive.is_empty()))
    })?;
    Ok(rows.into_iter().flatten().collect())
}
