//! What the quickstart measures, before and after training.

use crate::commands::eval::{language_model, raw_and_standardised};
use crate::context::Context;
use crate::progress::bar;
use anyhow::{Context as _, Result};
use lapidary::Lapidary;
use lapidary::data::sts::StsPairs;
use lapidary::data::tasks::{LabelledText, load_classification, load_multiple_choice, load_text};
use lapidary::embed::EmbedOptions;
use lapidary::eval::classification::{Labelled, Protocol, draw_samples, score_classification};
use lapidary::eval::language::LanguageModel;
use lapidary::eval::logistic_regression::LogisticRegressionConfig;
use lapidary::eval::multiple_choice::Question;
use std::path::{Path, PathBuf};

/// Training text within the sample.
pub(super) const TRAINING_FILE: &str = "wiki_sentences.txt.gz";
/// Rows over which the standardisation of every method in the table is fitted.
pub(super) const STANDARDISATION_ROWS: usize = 256;
/// A part of Banking77 that takes a minute: experiments, and test rows per label.
const BANKING_EXPERIMENTS: usize = 2;
const BANKING_TEST_ROWS: usize = 4;
/// Tokens of WikiText-2, and the window they are read in.
const PERPLEXITY_TOKENS: usize = 4096;
const WINDOW: (usize, usize) = (512, 512);
/// Questions of MMLU, one of each subject, without examples before them.
const MMLU_QUESTIONS: usize = 57;

/// The sample data.
pub(super) struct Samples {
    pub(super) training: PathBuf,
    sts: Vec<(String, StsPairs)>,
    banking_train: Vec<LabelledText>,
    banking_test: Vec<LabelledText>,
    text: String,
    questions: Vec<Question>,
    dev: Vec<Question>,
}

/// Spearman times 100 of each STS set, as pooled and standardised.
pub(super) struct MethodScore {
    pub(super) name: String,
    pub(super) sets: Vec<(String, f64, f64)>,
}

impl Samples {
    pub(super) fn load(dir: &Path, benchmark: Option<StsPairs>) -> Result<Self> {
        let mut sts = vec![("STS17".to_owned(), StsPairs::load_split(&dir.join("STS17"), "test")?)];
        sts.extend(benchmark.map(|pairs| ("STSBenchmark".to_owned(), pairs)));
        let banking = dir.join("Banking77Classification");
        let mut banking_test = load_classification(&banking.join("test.jsonl.gz"))?;
        let mut seen = std::collections::HashMap::new();
        banking_test.retain(|row| {
            let count = seen.entry(row.label.clone()).or_insert(0);
            *count += 1;
            *count <= BANKING_TEST_ROWS
        });
        let all = questions(&dir.join("MMLU/test.jsonl.gz"))?;
        let picked = lapidary::eval::multiple_choice::select_slice(&all, MMLU_QUESTIONS.min(all.len()), 0)?;
        Ok(Self {
            training: dir.join(TRAINING_FILE),
            sts,
            banking_train: load_classification(&banking.join("train.jsonl.gz"))?,
            banking_test,
            text: load_text(&dir.join("WikiText2/wiki.test.raw.gz"))?,
            questions: picked.into_iter().map(|i| all[i].clone()).collect(),
            dev: questions(&dir.join("MMLU/dev.jsonl.gz"))?,
        })
    }
}

fn questions(path: &Path) -> Result<Vec<Question>> {
    let rows = load_multiple_choice(path)?.into_iter();
    // The letter protocol has four letters.
    Ok(rows
        .filter_map(|row| {
            let choices: [String; 4] = row.choices.try_into().ok()?;
            Some(Question {
                subject: row.subject,
                question: row.question,
                choices,
                answer: u8::try_from(row.answer).ok()?,
            })
        })
        .collect())
}

/// Scores a model, standardised on `fit`: the same post-processing for all.
pub(super) fn method(
    mut model: Lapidary,
    name: &str,
    samples: &Samples,
    fit: &[Vec<u32>],
    context: &Context,
) -> Result<(Lapidary, MethodScore)> {
    model.standardise_on(fit, &mut |_| {})?;
    let mut sets = Vec::new();
    for (set, pairs) in &samples.sts {
        let label = format!("{set}, {name}");
        let (raw, standardised) = raw_and_standardised(&model, pairs, &label, context)?;
        let standardised = standardised.context("a standardisation is fitted before a method is scored")?;
        sets.push((set.clone(), raw, standardised));
    }
    context.note(&format!(
        "{name:<16} {}",
        sets.iter()
            .map(|(set, raw, std)| format!("{set} {raw:.1} raw, {std:.1} standardised"))
            .collect::<Vec<_>>()
            .join("; ")
    ));
    Ok((model, MethodScore { name: name.to_owned(), sets }))
}

/// Accuracy times 100 on a part of Banking77 by the MTEB protocol.
pub(super) fn banking(model: &Lapidary, samples: &Samples, name: &str, context: &Context) -> Result<f64> {
    let mut classes: Vec<&str> = samples.banking_train.iter().map(|row| row.label.as_str()).collect();
    classes.sort_unstable();
    classes.dedup();
    let class = |rows: &[&LabelledText]| -> Vec<usize> {
        rows.iter().map(|row| classes.binary_search(&row.label.as_str()).unwrap_or(0)).collect()
    };
    let all: Vec<&LabelledText> = samples.banking_train.iter().collect();
    let protocol = Protocol { num_experiments: BANKING_EXPERIMENTS, ..Protocol::default() };
    let draws = draw_samples(&class(&all), &protocol)?;
    let train: Vec<&LabelledText> = draws.rows.iter().map(|row| all[*row]).collect();
    let test: Vec<&LabelledText> = samples.banking_test.iter().collect();
    let bar = bar(context, (train.len() + test.len()) as u64, "texts")?;
    bar.set_message(format!("Banking77, {name}"));
    let embed = |rows: &[&LabelledText], before: usize| {
        let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
        // As `eval tasks` does it: the regression's penalty feels the length of vectors.
        let options = EmbedOptions { normalise: false, ..EmbedOptions::default() };
        model.embed_with(&texts, &options, &mut |done| bar.set_position((before + done) as u64))
    };
    let (train_vectors, test_vectors) = (embed(&train, 0)?.vectors, embed(&test, train.len())?.vectors);
    bar.finish_and_clear();
    let train = Labelled { vectors: &train_vectors, labels: &class(&train) };
    let test = Labelled { vectors: &test_vectors, labels: &class(&test) };
    Ok(score_classification(&train, &test, &draws, &LogisticRegressionConfig::default())?.accuracy)
}

/// Perplexity and multiple choice through the chat path: (name, base, GEM).
pub(super) fn knowledge(
    base: &Lapidary,
    gem: &Lapidary,
    samples: &Samples,
    context: &Context,
) -> Result<Vec<(String, f64, f64)>> {
    let mut ids = base.base().tokenizer.encode(&samples.text)?;
    ids.truncate(PERPLEXITY_TOKENS);
    let models = [LanguageModel::of_base(base.base()), language_model(gem)];
    let bar = bar(context, 2 * ids.len() as u64, "tokens")?;
    bar.set_message("WikiText-2 perplexity, base and GEM");
    let mut perplexity = [0.0; 2];
    for (i, model) in models.iter().enumerate() {
        perplexity[i] = model.perplexity(&ids, WINDOW, &mut |done| bar.set_position((i * ids.len() + done) as u64))?;
    }
    bar.finish_and_clear();
    let mut figures =
        vec![(format!("WikiText-2 perplexity, first {} tokens", ids.len()), perplexity[0], perplexity[1])];
    if let Err(error) = models[0].answer_letters() {
        context.note(&format!("MMLU is left out: {error}"));
        return Ok(figures);
    }
    let bar = crate::progress::bar(context, 2 * samples.questions.len() as u64, "questions")?;
    bar.set_message("MMLU, base and GEM");
    let mut accuracy = [0.0; 2];
    for (i, model) in models.iter().enumerate() {
        let done = |done| bar.set_position((i * samples.questions.len() + done) as u64);
        accuracy[i] = model.multiple_choice(&samples.questions, &samples.dev, 0, &mut { done })?.accuracy;
    }
    bar.finish_and_clear();
    let name = format!("MMLU accuracy, {} questions, no examples", samples.questions.len());
    figures.push((name, accuracy[0], accuracy[1]));
    Ok(figures)
}
