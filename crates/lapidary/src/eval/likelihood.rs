//! Log-likelihoods of continuations, the currency of lm-evaluation-harness: multiple choice by whole answers, and the
//! last word of a text.

use super::error::{EvalError, Result};
use super::language::LanguageModel;
use crate::Error;
use crate::model::{ForwardOptions, Kv, Segment};
use kernels::ops;
use layout::TokenId;

/// Positions of one forward pass.
const BATCH_TOKENS: usize = 2048;

/// A text and what may follow it, encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Tokens before, at least one.
    pub context: Vec<TokenId>,
    /// Tokens whose likelihood is asked for, at least one.
    pub continuation: Vec<TokenId>,
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Natural logarithm of its probability.
    pub log_likelihood: f64,
    /// Whether greedy decoding would write it.
    pub is_greedy: bool,
}

/// Share right, times 100, of questions with `choices` each: the answer is the choice of the highest log-likelihood
/// (`accuracy`), or of the highest per character of its text (`accuracy_norm`), the first of equals.
///
/// # Errors
/// When there are no questions.
pub fn choice_accuracy(questions: &[ScoredQuestion]) -> Result<(f64, f64)> {
    if questions.is_empty() {
        return Err(EvalError::TooFew { what: "questions", expected: 1, found: 0 });
    }
    let share = |score: &dyn Fn(&(f64, usize)) -> f64| {
        let right = questions.iter().filter(|question| {
            let best = question.choices.iter().map(score).enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
            best.is_some_and(|(choice, _)| choice == question.answer)
        });
        100.0 * right.count() as f64 / questions.len() as f64
    };
    Ok((share(&|choice| choice.0), share(&|choice| choice.0 / choice.1.max(1) as f64)))
}

/// A question whose choices have been scored.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredQuestion {
    /// Log-likelihood and length in characters of each choice.
    pub choices: Vec<(f64, usize)>,
    /// The right choice.
    pub answer: usize,
}

impl LanguageModel<'_> {
    /// Encodes a context and its continuation as lm-evaluation-harness does: blanks at the end of the context go to
    /// the continuation, and the two are encoded together, so that tokens may reach across their border.
    ///
    /// # Errors
    /// When a text cannot be encoded, or one of the two has no token of its own.
    pub fn encode_continuation(&self, context: &str, continuation: &str) -> std::result::Result<Continuation, Error> {
        let trimmed = context.trim_end();
        let moved = format!("{}{continuation}", &context[trimmed.len()..]);
        let bos = self.base.bos();
        let encode = |text: &str| -> std::result::Result<Vec<TokenId>, Error> {
            Ok(bos.into_iter().chain(self.base.tokenizer.encode(text)?).collect())
        };
        // Where a token reaches across the border, the harness cuts by the number of the context's own tokens.
        let border = encode(trimmed)?.len();
        let mut context = encode(&format!("{trimmed}{moved}"))?;
        if border == 0 || context.len() <= border {
            return Err(Error::Setting {
                field: format!("continuation {continuation:?}"),
                expected: "tokens before it and tokens of its own".into(),
                found: format!("{border} and {}", context.len().saturating_sub(border)),
            });
        }
        let continuation = context.split_off(border);
        Ok(Continuation { context, continuation })
    }

    /// The likelihood of each continuation after its context; contexts too long for the model lose their beginning.
    ///
    /// # Errors
    /// When a token is outside the vocabulary.
    pub fn likelihoods(
        &self,
        rows: &[Continuation],
        progress: &mut dyn FnMut(usize),
    ) -> std::result::Result<Vec<Likelihood>, Error> {
        let longest = self.decoder.config().max_position_embeddings;
        if let Some(row) = rows.iter().find(|row| row.continuation.len() > longest) {
            return Err(Error::TooLong { found: row.continuation.len(), limit: longest });
        }
        // Rows of like length together; the results go back to their places.
        let ids = |row: &Continuation| {
            // The last token of the continuation predicts nothing that is asked for.
            let all: Vec<TokenId> = row.context.iter().chain(&row.continuation).copied().collect();
            let kept = (all.len() - 1).min(longest);
            all[all.len() - 1 - kept..all.len() - 1].to_vec()
        };
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|row| rows[*row].context.len() + rows[*row].continuation.len());
        let mut found = vec![Likelihood { log_likelihood: 0.0, is_greedy: false }; rows.len()];
        let mut done = 0;
        while done < order.len() {
            let mut batch = Vec::new();
            let mut tokens = 0;
            for row in &order[done..] {
                let row_ids = ids(&rows[*row]);
                if !batch.is_empty() && tokens + row_ids.len() > BATCH_TOKENS {
                    break;
                }
                tokens += row_ids.len();
                batch.push((*row, row_ids));
            }
            done += batch.len();
            for (row, likelihood) in self.batch_likelihoods(rows, &batch)? {
                found[row] = likelihood;
            }
            progress(done);
        }
        Ok(found)
    }

    fn batch_likelihoods(
        &self,
        rows: &[Continuation],
        batch: &[(usize, Vec<TokenId>)],
    ) -> std::result::Result<Vec<(usize, Likelihood)>, Error> {
        let ids: Vec<&[TokenId]> = batch.iter().map(|(_, ids)| ids.as_slice()).collect();
        let plain = Segment::plain_rows(ids.iter().copied()).in_view(self.anchors, &ids);
        let segment = if self.adapts_plain_rows { plain.adapt_all() } else { plain };
        let options = ForwardOptions { adapter: self.adapter, ..ForwardOptions::default() };
        let hidden = self.decoder.forward(&segment, Kv::None, options)?;
        let (mut places, mut labels, mut end) = (Vec::new(), Vec::new(), 0);
        for (row, ids) in batch {
            end += ids.len();
            let continuation = &rows[*row].continuation;
            places.extend((end - continuation.len()..end).map(|at| vec![(at as u32, 1.0)]));
            labels.extend_from_slice(continuation);
        }
        let states = ops::pool(&hidden, places)?;
        let nll = self.decoder.cross_entropy(&states, &labels)?.to_vec1::<f32>()?;
        let logits = self.decoder.logits(&states)?;
        let best = logits.argmax(1)?.to_vec1::<u32>()?;
        let mut at = 0;
        let score = |(row, _): &(usize, Vec<TokenId>)| {
            let own = at..at + rows[*row].continuation.len();
            at = own.end;
            let log_likelihood = -nll[own.clone()].iter().map(|nll| f64::from(*nll)).sum::<f64>();
            (*row, Likelihood { log_likelihood, is_greedy: best[own.clone()] == labels[own] })
        };
        Ok(batch.iter().map(score).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_by_sum_and_by_character() {
        let question = |choices: &[(f64, usize)], answer| ScoredQuestion { choices: choices.to_vec(), answer };
        let questions = [question(&[(-4.0, 2), (-6.0, 12)], 1), question(&[(-1.0, 1), (-3.0, 1)], 0)];
        assert_eq!(choice_accuracy(&questions), Ok((50.0, 100.0)));
        assert!(choice_accuracy(&[]).is_err());
    }
}
