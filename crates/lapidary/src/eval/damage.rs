//! How far a model has moved from another as a language model: logits of the same rows, and what greedy decoding
//! writes.

use super::error::{EvalError, Result};
use super::language::LanguageModel;
use crate::Error;
use layout::TokenId;

/// Difference of next-token distributions over some rows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Drift {
    /// Positions compared.
    pub num_positions: usize,
    /// Logits compared.
    pub num_logits: usize,
    /// Logits of which any bit differs.
    pub num_differing: usize,
    /// Mean over the positions of KL(base || other), nats.
    pub mean_kl: f64,
    /// The largest of them, nats.
    pub max_kl: f64,
    /// Share of the positions whose most likely token is the same.
    pub same_top: f64,
}

/// Kullback-Leibler divergence KL(p || q) of the softmaxes of two rows of logits, nats.
///
/// # Errors
/// When the lengths differ, there is no logit, or one is not finite.
pub fn kl_divergence(p: &[f32], q: &[f32]) -> Result<f64> {
    super::error::check_lengths("p", p.len(), "q", q.len())?;
    let log_sum = |logits: &[f32], what: &'static str| -> Result<f64> {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        if let Some(index) = logits.iter().position(|x| !x.is_finite()) {
            return Err(EvalError::NotFinite { what, index, value: f64::from(logits[index]) });
        }
        if logits.is_empty() {
            return Err(EvalError::TooFew { what, expected: 1, found: 0 });
        }
        Ok(max + logits.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln())
    };
    let (log_p, log_q) = (log_sum(p, "p")?, log_sum(q, "q")?);
    let sum: f64 = p
        .iter()
        .zip(q)
        .map(|(p, q)| {
            let (p, q) = (f64::from(*p) - log_p, f64::from(*q) - log_q);
            p.exp() * (p - q)
        })
        .sum();
    // Rounding alone can bring it below zero.
    Ok(sum.max(0.0))
}

/// Compares two models with one vocabulary on every position of `rows`; `progress` is told the rows that are done.
///
/// # Errors
/// When the vocabularies differ, a row is too long or empty, or a logit is not finite.
pub fn drift(
    base: &LanguageModel<'_>,
    other: &LanguageModel<'_>,
    rows: &[Vec<TokenId>],
    progress: &mut dyn FnMut(usize),
) -> std::result::Result<Drift, Error> {
    let logits = |model: &LanguageModel<'_>, row: &[TokenId]| -> std::result::Result<Vec<Vec<f32>>, Error> {
        Ok(model.decoder.logits(&model.hidden(row)?)?.to_vec2()?)
    };
    let mut found = Drift::default();
    let (mut sum_kl, mut same) = (0.0, 0usize);
    for (i, row) in rows.iter().enumerate() {
        for (before, after) in logits(base, row)?.iter().zip(&logits(other, row)?) {
            let kl = kl_divergence(before, after)?;
            sum_kl += kl;
            found.max_kl = found.max_kl.max(kl);
            found.num_positions += 1;
            found.num_logits += before.len();
            found.num_differing += before.iter().zip(after).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            let top = |logits: &[f32]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            same += usize::from(top(before) == top(after));
        }
        progress(i + 1);
    }
    if found.num_positions == 0 {
        return Err(EvalError::TooFew { what: "positions of chats", expected: 1, found: 0 }.into());
    }
    found.mean_kl = sum_kl / found.num_positions as f64;
    found.same_top = same as f64 / found.num_positions as f64;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_by_hand() {
        // p = (3/4, 1/4), q = (1/2, 1/2).
        let found = kl_divergence(&[3f32.ln(), 0.0], &[7.0, 7.0]).unwrap();
        let want = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((found - want).abs() < 1e-7, "{found} {want}");
        // A constant on top of all logits changes nothing.
        assert!(kl_divergence(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]).unwrap() < 1e-12);
    }

    #[test]
    fn bad_input_is_an_error() {
        assert!(kl_divergence(&[1.0], &[1.0, 2.0]).is_err());
        assert!(kl_divergence(&[f32::NAN], &[1.0]).is_err());
        assert!(kl_divergence(&[], &[]).is_err());
    }
}
