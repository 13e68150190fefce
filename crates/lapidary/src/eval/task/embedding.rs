//! Scores of vectors on a task: what is embedded, and by which protocol of the `mteb` package it is scored.

use super::{Scores, TEST, TaskKind, TaskScore, sampled};
use crate::Error;
use crate::data::mteb;
use crate::data::sts::StsPairs;
use crate::data::tasks::{self, split_file};
use crate::eval::bootstrapped_clustering::Bootstrap;
use crate::eval::classification::{Labelled, Protocol, draw_samples, score_classification};
use crate::eval::clustering::{ClusteringSet, score_clustering};
use crate::eval::logistic_regression::LogisticRegressionConfig;
use crate::eval::pair_classification::score_pairs;
use crate::eval::retrieval::{Judgements, RetrievalTask, score_retrieval};
use crate::eval::sts;
use crate::eval::summarization::{SummarySet, score_summaries};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Which side of a task texts are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What an instruction goes with: queries, and all texts of tasks without documents.
    Query,
    /// What is to be found.
    Document,
}

/// Embeds texts of one side: `[D]` each, in order.
pub type Embed<'a> = dyn FnMut(&[&str], Side) -> Result<Vec<Vec<f32>>, Error> + 'a;

/// Samples of each label that MTEB draws for the classification task `name`.
fn samples_per_label(name: &str) -> usize {
    match name.trim_end_matches(".v2") {
        "AmazonCounterfactualClassification" | "TweetSentimentExtractionClassification" => 32,
        "EmotionClassification" | "ToxicConversationsClassification" => 16,
        _ => Protocol::default().samples_per_label,
    }
}

/// Tasks whose queries are documents of the corpus: MTEB does not rank a document for itself there.
const IGNORE_IDENTICAL_IDS: [&str; 8] =
    ["ArguAna", "ClimateFEVER", "DBPedia", "FEVER", "FEVERHardNegatives", "FiQA2018", "MSMARCO", "QuoraRetrieval"];

/// Scores an embedding task. Texts that occur twice in one list are embedded once.
///
/// # Errors
/// When MTEB's protocol for the task is another than the one that is here, its files are missing or damaged, `embed` fails, or a score is undefined.
pub fn score_embedding_task(dir: &Path, name: &str, kind: TaskKind, embed: &mut Embed<'_>) -> Result<TaskScore, Error> {
    let share = |percent: f64| percent / 100.0;
    let (metrics, num_scored) = match kind {
        TaskKind::Sts => {
            let set = StsPairs::load_split(dir, TEST)?;
            let spearman = sts::score_pairs(&set, |texts| embed(texts, Side::Query))?;
            (vec![("cosine_spearman", share(spearman))], set.pairs.len())
        }
        TaskKind::Classification => classification(dir, name, embed)?,
        TaskKind::Clustering if sampled::is_sampled(name) => sampled_clustering(dir, name, embed)?,
        TaskKind::Clustering => clustering(dir, embed)?,
        TaskKind::Retrieval => retrieval(dir, name, embed)?,
        TaskKind::Reranking => reranking(dir, embed)?,
        TaskKind::PairClassification => {
            let pairs = mteb::load_pairs(&split_file(dir, TEST)?)?;
            let texts: Vec<String> = pairs.sentence1.iter().chain(&pairs.sentence2).cloned().collect();
            let vectors = embed_unique(&texts, Side::Query, embed)?;
            let (first, second) = vectors.split_at(pairs.sentence1.len());
            (score_pairs(first, second, &pairs.labels)?.to_vec(), pairs.labels.len())
        }
        TaskKind::Summarization => summarization(dir, name, embed)?,
        _ => return Err(Error::Internal(format!("{kind:?} is no embedding task"))),
    };
    Ok(TaskScore { split: TEST, metrics, num_scored })
}

fn classification(dir: &Path, name: &str, embed: &mut Embed<'_>) -> Result<Scores, Error> {
    let train = tasks::load_classification(&split_file(dir, "train")?)?;
    let test = tasks::load_classification(&split_file(dir, TEST)?)?;
    let labels: Vec<String> = train.iter().chain(&test).map(|row| row.label.clone()).collect();
    let labels = numbered(&labels);
    let (train_labels, test_labels) = labels.split_at(train.len());
    let protocol = Protocol { samples_per_label: samples_per_label(name), ..Protocol::default() };
    let draws = draw_samples(train_labels, &protocol)?;
    let drawn: Vec<String> = draws.rows.iter().map(|row| train[*row].text.clone()).collect();
    let drawn_labels: Vec<usize> = draws.rows.iter().map(|row| train_labels[*row]).collect();
    let texts: Vec<String> = test.iter().map(|row| row.text.clone()).collect();
    let (drawn, vectors) = (embed_unique(&drawn, Side::Query, embed)?, embed_unique(&texts, Side::Query, embed)?);
    let score = score_classification(
        &Labelled { vectors: &drawn, labels: &drawn_labels },
        &Labelled { vectors: &vectors, labels: test_labels },
        &draws,
        &LogisticRegressionConfig::default(),
    )?;
    Ok((vec![("accuracy", score.accuracy / 100.0)], texts.len()))
}

fn clustering(dir: &Path, embed: &mut Embed<'_>) -> Result<Scores, Error> {
    let sets = mteb::load_clustering(&split_file(dir, TEST)?)?;
    let mut scored = Vec::with_capacity(sets.len());
    for set in &sets {
        scored.push((embed_unique(&set.sentences, Side::Query, embed)?, numbered(&set.labels)));
    }
    let sets: Vec<_> =
        scored.iter().map(|(vectors, labels)| ClusteringSet { vectors, labels: labels.as_slice() }).collect();
    let num_texts = sets.iter().map(|set| set.labels.len()).sum();
    Ok((vec![("v_measure", score_clustering(&sets)? / 100.0)], num_texts))
}

fn sampled_clustering(dir: &Path, name: &str, embed: &mut Embed<'_>) -> Result<Scores, Error> {
    let (rows, all) = sampled::transformed(name, mteb::load_sentences(&split_file(dir, TEST)?)?)?;
    let mut bootstrap = Bootstrap::default();
    let drawn = if all { (0..rows.len()).collect() } else { bootstrap.texts(rows.len())? };
    let (texts, labels): (Vec<String>, Vec<Vec<String>>) =
        drawn.into_iter().map(|row| (rows[row].sentence.clone(), rows[row].labels.clone())).unzip();
    let scores = bootstrap.v_measures(&embed_unique(&texts, Side::Query, embed)?, &labels)?;
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let deviation = (scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / scores.len() as f64).sqrt();
    Ok((vec![("v_measure", mean), ("v_measure_std", deviation)], texts.len()))
}

fn retrieval(dir: &Path, name: &str, embed: &mut Embed<'_>) -> Result<Scores, Error> {
    let data = mteb::load_retrieval(dir, TEST)?;
    let by_id: HashMap<&str, usize> = data.document_ids.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect();
    let same = |id: &String| by_id.get(id.as_str()).copied().filter(|_| IGNORE_IDENTICAL_IDS.contains(&name));
    let itself: Vec<Option<usize>> = data.query_ids.iter().map(same).collect();
    let (queries, documents) =
        (embed_unique(&data.queries, Side::Query, embed)?, embed_unique(&data.documents, Side::Document, embed)?);
    let task = RetrievalTask {
        document_ids: &data.document_ids,
        judgements: &data.judgements,
        candidates: None,
        itself: &itself,
    };
    let score = score_retrieval(&queries, &documents, &task)?;
    let metrics = vec![
        ("ndcg_at_10", score.ndcg_at_10),
        ("map_at_10", score.map_at_10),
        ("recall_at_10", score.recall_at_10),
        ("recall_at_100", score.recall_at_100),
        ("mrr_at_10", score.mrr_at_10),
    ];
    Ok((metrics, score.num_queries))
}

fn reranking(dir: &Path, embed: &mut Embed<'_>) -> Result<Scores, Error> {
    let rows = mteb::load_reranking(&split_file(dir, TEST)?)?;
    let (mut documents, mut judgements, mut candidates) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let first = documents.len();
        documents.extend(row.positive.iter().chain(&row.negative).cloned());
        judgements.push(Judgements::from_iter((first..first + row.positive.len()).map(|document| (document, 1))));
        candidates.push((first..documents.len()).collect::<Vec<usize>>());
    }
    let queries: Vec<String> = rows.into_iter().map(|row| row.query).collect();
    let vectors = embed_unique(&queries, Side::Query, embed)?;
    let document_vectors = embed_unique(&documents, Side::Document, embed)?;
    let ids: Vec<String> = (0..documents.len()).map(|i| format!("{i:09}")).collect();
    let task = RetrievalTask {
        document_ids: &ids,
        judgements: &judgements,
        candidates: Some(&candidates),
        itself: &vec![None; queries.len()],
    };
    let score = score_retrieval(&vectors, &document_vectors, &task)?;
    let metrics = vec![("map_at_1000", score.map_at_1000), ("mrr_at_10", score.mrr_at_10)];
    Ok((metrics, score.num_queries))
}

fn summarization(dir: &Path, name: &str, embed: &mut Embed<'_>) -> Result<Scores, Error> {
    if name == "SummEval" {
        return Err(Error::Setting {
            field: format!("task {name}"),
            expected: "SummEvalSummarization.v2".into(),
            found: "its first version, whose score in the mteb package averages correlations with their p-values"
                .into(),
        });
    }
    let rows = mteb::load_summaries(&split_file(dir, TEST)?)?;
    let texts = |of: fn(&mteb::Summaries) -> &Vec<String>| rows.iter().flat_map(of).cloned().collect::<Vec<String>>();
    let human = embed_unique(&texts(|row| &row.human), Side::Query, embed)?;
    let machine = embed_unique(&texts(|row| &row.machine), Side::Query, embed)?;
    let (mut human, mut machine) = (human.as_slice(), machine.as_slice());
    let mut sets = Vec::with_capacity(rows.len());
    for row in &rows {
        let (of_human, of_machine);
        (of_human, human) = human.split_at(row.human.len());
        (of_machine, machine) = machine.split_at(row.machine.len());
        sets.push(SummarySet { human: of_human, machine: of_machine, relevance: &row.relevance });
    }
    let score = score_summaries(&sets)?;
    Ok((vec![("cosine_spearman", score.cosine_spearman), ("dot_spearman", score.dot_spearman)], score.num_scored))
}

/// Numbers for names, in the order of the names.
fn numbered(labels: &[String]) -> Vec<usize> {
    let names: BTreeMap<&str, ()> = labels.iter().map(|label| (label.as_str(), ())).collect();
    let number: HashMap<&str, usize> = names.into_keys().enumerate().map(|(i, name)| (name, i)).collect();
    labels.iter().map(|label| number[label.as_str()]).collect()
}

/// Embeds each different text once.
fn embed_unique(texts: &[String], side: Side, embed: &mut Embed<'_>) -> Result<Vec<Vec<f32>>, Error> {
    let mut unique: Vec<&str> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    let rows: Vec<usize> = texts
        .iter()
        .map(|text| {
            *places.entry(text).or_insert_with(|| {
                unique.push(text);
                unique.len() - 1
            })
        })
        .collect();
    let vectors = embed(&unique, side)?;
    Ok(rows.into_iter().map(|row| vectors[row].clone()).collect())
}
