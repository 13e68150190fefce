//! Evaluation tasks as directories of data: what kind each is, and the scores of a model on it, named as the `mteb`
//! package and lm-evaluation-harness name them.

use super::classification::{Labelled, Protocol, draw_samples, score_classification};
use super::clustering::{ClusteringSet, score_clustering};
use super::language::LanguageModel;
use super::likelihood::{ScoredQuestion, choice_accuracy};
use super::logistic_regression::LogisticRegressionConfig;
use super::multiple_choice::{Question, select_slice};
use super::pair_classification::score_pairs;
use super::retrieval::{Judgements, RetrievalTask, score_retrieval};
use super::sts;
use crate::Error;
use crate::data::sts::StsPairs;
use crate::data::tasks::{self, split_file};
use crate::data::{DataError, mteb};
use std::collections::{BTreeMap, HashMap};
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
    /// The letter of the answer after five examples (MMLU).
    LetterChoice,
    /// The most likely answer text (ARC).
    AnswerChoice,
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

/// Embeds texts: `[D]` each, in order.
pub type Embed<'a> = dyn FnMut(&[&str]) -> Result<Vec<Vec<f32>>, Error> + 'a;

const TEST: &str = "test";
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
        let Ok(test) = split_file(dir, TEST) else { return Ok(None) };
        let columns = tasks::columns(&test)?;
        if columns == ["text"] {
            return Ok(Some(Self::LastWord));
        }
        let has = |names: &[&str]| names.iter().all(|name| columns.iter().any(|column| column == name));
        let kinds: [(&[&str], Self); 8] = [
            (&["sentence1", "sentence2", "score"], Self::Sts),
            (&["sentence1", "sentence2", "labels"], Self::PairClassification),
            (&["sentence1", "sentence2", "label"], Self::PairClassification),
            (&["sentences", "labels"], Self::Clustering),
            (&["query", "positive", "negative"], Self::Reranking),
            (&["text", "label"], Self::Classification),
            (&["subject", "question", "choices", "answer"], Self::LetterChoice),
            (&["question", "choices", "answerKey"], Self::AnswerChoice),
        ];
        Ok(kinds.into_iter().find(|(names, _)| has(names)).map(|(_, kind)| kind))
    }

    /// Whether the task asks for vectors; the others ask for likelihoods.
    pub fn is_embedding(self) -> bool {
        !matches!(self, Self::LetterChoice | Self::AnswerChoice | Self::LastWord | Self::Perplexity)
    }
}

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

/// Whether MTEB scores the clustering task by another protocol than this crate: a sample of the texts, drawn again and
/// again, with a score for each level of labels.
fn is_sampled_clustering(name: &str) -> bool {
    name.ends_with(".v2") || name.starts_with("ArXivHierarchical")
}

/// Scores an embedding task. Texts that occur twice in one list are embedded once.
///
/// # Errors
/// When MTEB's protocol for the task is another than the one that is here, its files are missing or damaged, `embed` fails, or a score is undefined.
pub fn score_embedding_task(dir: &Path, name: &str, kind: TaskKind, embed: &mut Embed<'_>) -> Result<TaskScore, Error> {
    let share = |percent: f64| percent / 100.0;
    let (metrics, num_scored) = match kind {
        TaskKind::Sts => {
            let set = StsPairs::load_split(dir, TEST)?;
            let spearman = sts::score_pairs(&set, |texts| embed(texts))?;
            (vec![("cosine_spearman", share(spearman))], set.pairs.len())
        }
        TaskKind::Classification => classification(dir, name, embed)?,
        TaskKind::Clustering if is_sampled_clustering(name) => {
            return Err(Error::Setting {
                field: format!("task {name}"),
                expected: "a clustering task of MTEB version 1 (sets of texts)".into(),
                found: "one that MTEB version 2 scores on samples, which is not implemented".into(),
            });
        }
        TaskKind::Clustering => {
            let sets = mteb::load_clustering(&split_file(dir, TEST)?)?;
            let mut scored = Vec::with_capacity(sets.len());
            for set in &sets {
                scored.push((embed_unique(&set.sentences, embed)?, numbered(&set.labels)));
            }
            let sets: Vec<_> =
                scored.iter().map(|(vectors, labels)| ClusteringSet { vectors, labels: labels.as_slice() }).collect();
            (vec![("v_measure", share(score_clustering(&sets)?))], sets.iter().map(|set| set.labels.len()).sum())
        }
        TaskKind::Retrieval => retrieval(dir, name, embed)?,
        TaskKind::Reranking => reranking(dir, embed)?,
        TaskKind::PairClassification => {
            let pairs = mteb::load_pairs(&split_file(dir, TEST)?)?;
            let texts: Vec<String> = pairs.sentence1.iter().chain(&pairs.sentence2).cloned().collect();
            let vectors = embed_unique(&texts, embed)?;
            let (first, second) = vectors.split_at(pairs.sentence1.len());
            (vec![("cosine_ap", share(score_pairs(first, second, &pairs.labels)?))], pairs.labels.len())
        }
        _ => return Err(Error::Internal(format!("{kind:?} is no embedding task"))),
    };
    Ok(TaskScore { split: TEST, metrics, num_scored })
}

type Scores = (Vec<(&'static str, f64)>, usize);

fn classification(dir: &Path, name: &str, embed: &mut Embed<'_>) -> Result<Scores, Error> {
    let train = tasks::load_classification(&split_file(dir, "train")?)?;
    let test = tasks::load_classification(&split_file(dir, TEST)?)?;
    let labels: Vec<String> = train.iter().chain(&test).map(|row| row.label.to_string()).collect();
    let labels = numbered(&labels);
    let (train_labels, test_labels) = labels.split_at(train.len());
    let protocol = Protocol { samples_per_label: samples_per_label(name), ..Protocol::default() };
    let draws = draw_samples(train_labels, &protocol)?;
    let drawn: Vec<String> = draws.rows.iter().map(|row| train[*row].text.clone()).collect();
    let drawn_labels: Vec<usize> = draws.rows.iter().map(|row| train_labels[*row]).collect();
    let texts: Vec<String> = test.iter().map(|row| row.text.clone()).collect();
    let (drawn, vectors) = (embed_unique(&drawn, embed)?, embed_unique(&texts, embed)?);
    let score = score_classification(
        &Labelled { vectors: &drawn, labels: &drawn_labels },
        &Labelled { vectors: &vectors, labels: test_labels },
        &draws,
        &LogisticRegressionConfig::default(),
    )?;
    Ok((vec![("accuracy", score.accuracy / 100.0)], texts.len()))
}

fn retrieval(dir: &Path, name: &str, embed: &mut Embed<'_>) -> Result<Scores, Error> {
    let data = mteb::load_retrieval(dir, TEST)?;
    let by_id: HashMap<&str, usize> = data.document_ids.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect();
    let same = |id: &String| by_id.get(id.as_str()).copied().filter(|_| IGNORE_IDENTICAL_IDS.contains(&name));
    let itself: Vec<Option<usize>> = data.query_ids.iter().map(same).collect();
    let (queries, documents) = (embed_unique(&data.queries, embed)?, embed_unique(&data.documents, embed)?);
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
    let vectors = embed_unique(&queries, embed)?;
    let document_vectors = embed_unique(&documents, embed)?;
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

/// Numbers for names, in the order of the names.
fn numbered(labels: &[String]) -> Vec<usize> {
    let names: BTreeMap<&str, ()> = labels.iter().map(|label| (label.as_str(), ())).collect();
    let number: HashMap<&str, usize> = names.into_keys().enumerate().map(|(i, name)| (name, i)).collect();
    labels.iter().map(|label| number[label.as_str()]).collect()
}

/// Embeds each different text once.
fn embed_unique(texts: &[String], embed: &mut Embed<'_>) -> Result<Vec<Vec<f32>>, Error> {
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
    let vectors = embed(&unique)?;
    Ok(rows.into_iter().map(|row| vectors[row].clone()).collect())
}

/// How much of a language task is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanguageOptions {
    /// At most so many questions or texts, or thousands of tokens of a raw text, spread over the set; 0: all.
    pub limit: usize,
    /// Examples before each question of a letter choice.
    pub num_fewshot: usize,
    /// Tokens that the model reads together for a perplexity, where it can read so many.
    pub window: usize,
}

impl Default for LanguageOptions {
    fn default() -> Self {
        Self { limit: 0, num_fewshot: 5, window: 1024 }
    }
}

/// Scores a task of likelihoods; `progress` is told (done, of).
///
/// # Errors
/// When its files are missing or damaged, or a text cannot be encoded.
pub fn score_language_task(
    dir: &Path,
    kind: TaskKind,
    model: &LanguageModel<'_>,
    options: &LanguageOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<TaskScore, Error> {
    let (metrics, num_scored) = match kind {
        TaskKind::LetterChoice => {
            let load = |split: &str| -> Result<Vec<Question>, Error> {
                tasks::load_multiple_choice(&split_file(dir, split)?)?.into_iter().map(letters).collect()
            };
            let (mut questions, dev) = (load(TEST)?, if options.num_fewshot > 0 { load("dev")? } else { Vec::new() });
            if (1..questions.len()).contains(&options.limit) {
                questions =
                    select_slice(&questions, options.limit, 0)?.into_iter().map(|i| questions[i].clone()).collect();
            }
            let all = questions.len();
            let score =
                model.multiple_choice(&questions, &dev, options.num_fewshot, &mut |done| progress(done, all))?;
            (vec![("acc", score.accuracy / 100.0)], all)
        }
        TaskKind::AnswerChoice => {
            let questions = spread(tasks::load_answer_choice(&split_file(dir, TEST)?)?, options.limit);
            let mut rows = Vec::new();
            for question in &questions {
                let context = format!("Question: {}\nAnswer:", question.question);
                for choice in &question.choices {
                    rows.push(model.encode_continuation(&context, &format!(" {choice}"))?);
                }
            }
            let all = rows.len();
            let mut found = model.likelihoods(&rows, &mut |done| progress(done, all))?.into_iter();
            let scored = questions.iter().map(|question| ScoredQuestion {
                choices: question
                    .choices
                    .iter()
                    .zip(&mut found)
                    .map(|(c, l)| (l.log_likelihood, c.chars().count()))
                    .collect(),
                answer: question.answer,
            });
            let (acc, acc_norm) = choice_accuracy(&scored.collect::<Vec<_>>())?;
            (vec![("acc_norm", acc_norm / 100.0), ("acc", acc / 100.0)], questions.len())
        }
        TaskKind::LastWord => {
            let texts = spread(tasks::load_texts(&split_file(dir, TEST)?)?, options.limit);
            let mut rows = Vec::with_capacity(texts.len());
            for text in &texts {
                let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
                rows.push(model.encode_continuation(context, &format!(" {word}"))?);
            }
            let all = rows.len();
            let found = model.likelihoods(&rows, &mut |done| progress(done, all))?;
            let n = found.len() as f64;
            let acc = found.iter().filter(|found| found.is_greedy).count() as f64 / n;
            let perplexity = (-found.iter().map(|found| found.log_likelihood).sum::<f64>() / n).exp();
            (vec![("acc", acc), ("perplexity", perplexity)], all)
        }
        TaskKind::Perplexity => {
            let file = RAW_TEXT.iter().map(|name| dir.join(name)).find(|path| path.is_file());
            let file = file.ok_or_else(|| Error::Internal(format!("{}: no raw text", dir.display())))?;
            let mut ids = model.base.tokenizer.encode_long(&tasks::load_text(&file)?)?;
            if options.limit > 0 {
                ids.truncate(options.limit * 1000);
            }
            let all = ids.len();
            let window = options.window.min(model.base.decoder.config().max_position_embeddings);
            let steps = (window, window.div_ceil(2));
            (vec![("perplexity", model.perplexity(&ids, steps, &mut |done| progress(done, all))?)], all)
        }
        _ => return Err(Error::Internal(format!("{kind:?} is no language task"))),
    };
    Ok(TaskScore { split: TEST, metrics, num_scored })
}

fn letters(row: tasks::MultipleChoice) -> Result<Question, Error> {
    let found = row.choices.len();
    let choices = row.choices.try_into().map_err(|_| Error::Setting {
        field: format!("choices of {:?}", row.question),
        expected: "four".into(),
        found: found.to_string(),
    })?;
    Ok(Question { subject: row.subject, question: row.question, choices, answer: row.answer as u8 })
}

/// `limit` items spread evenly over all of them; 0: all.
pub fn spread<T>(items: Vec<T>, limit: usize) -> Vec<T> {
    let all = items.len();
    if limit == 0 || limit >= all {
        return items;
    }
    let kept = |i: usize| i * limit / all != (i + 1) * limit / all;
    items.into_iter().enumerate().filter(|(i, _)| kept(*i)).map(|(_, item)| item).collect()
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
