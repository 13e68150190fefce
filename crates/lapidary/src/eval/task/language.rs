//! Scores of likelihoods on a task, as lm-evaluation-harness asks and scores it.

use super::{RAW_TEXT, Scores, TEST, TaskKind, TaskScore, VALIDATION};
use crate::Error;
use crate::data::hellaswag::load_hellaswag;
use crate::data::tasks::{self, split_file};
use crate::eval::language::LanguageModel;
use crate::eval::likelihood::{ScoredQuestion, choice_accuracy};
use crate::eval::multiple_choice::{Question, select_slice};
use std::path::Path;

/// How much of a language task is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanguageOptions {
    /// At most so many questions or texts, spread over the set; 0: all.
    pub limit: usize,
    /// At most so many tokens of a raw text, from its beginning; 0: all.
    pub max_tokens: usize,
    /// Examples before each question of a letter choice.
    pub num_fewshot: usize,
    /// Tokens that the model reads together for a perplexity, where it can read so many.
    pub window: usize,
}

impl Default for LanguageOptions {
    fn default() -> Self {
        Self { limit: 0, max_tokens: 0, num_fewshot: 5, window: 1024 }
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
    let mut split = TEST;
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
            let mut questions = spread(tasks::load_answer_choice(&split_file(dir, TEST)?)?, options.limit);
            for question in &mut questions {
                question.question = format!("Question: {}\nAnswer:", question.question);
            }
            continuation_choice(&questions, model, progress)?
        }
        TaskKind::EndingChoice => {
            split = if split_file(dir, TEST).is_ok() { TEST } else { VALIDATION };
            let questions = spread(load_hellaswag(&split_file(dir, split)?)?, options.limit);
            continuation_choice(&questions, model, progress)?
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
            if options.max_tokens > 0 {
                ids.truncate(options.max_tokens);
            }
            let all = ids.len();
            let window = options.window.min(model.decoder.config().max_position_embeddings);
            let steps = (window, window.div_ceil(2));
            (vec![("perplexity", model.perplexity(&ids, steps, &mut |done| progress(done, all))?)], all)
        }
        _ => return Err(Error::Internal(format!("{kind:?} is no language task"))),
    };
    Ok(TaskScore { split, metrics, num_scored })
}

/// Asks which of its choices a question goes on with: by likelihood, and by likelihood per character.
fn continuation_choice(
    questions: &[tasks::MultipleChoice],
    model: &LanguageModel<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Scores, Error> {
    let mut rows = Vec::new();
    for question in questions {
        for choice in &question.choices {
            rows.push(model.encode_continuation(&question.question, &format!(" {choice}"))?);
        }
    }
    let all = rows.len();
    let mut found = model.likelihoods(&rows, &mut |done| progress(done, all))?.into_iter();
    let scored = questions.iter().map(|question| ScoredQuestion {
        choices: question.choices.iter().zip(&mut found).map(|(c, l)| (l.log_likelihood, c.chars().count())).collect(),
        answer: question.answer,
    });
    let (acc, acc_norm) = choice_accuracy(&scored.collect::<Vec<_>>())?;
    Ok((vec![("acc_norm", acc_norm / 100.0), ("acc", acc / 100.0)], questions.len()))
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
