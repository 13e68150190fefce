//! Sliding-window perplexity: which tokens are read together, and which of them count.

use std::ops::Range;

use super::error::{EvalError, Result, check_lengths};

/// One window over the token ids of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The tokens the model reads.
    pub tokens: Range<usize>,
    /// The tokens whose log-likelihood counts; they lie inside `tokens`, never at its first place,
    /// because token t is predicted from those before it.
    pub scored: Range<usize>,
}

/// Windows of `window_tokens` every `stride` tokens, the last one cut at the end of the text.
///
/// With `stride < window_tokens` every token but the first counts exactly once, in the window
/// that gives it the longest context. With `stride == window_tokens` there is no overlap, so the
/// first token of each window has no context and does not count.
///
/// # Errors
/// If there are fewer than two tokens, `window_tokens < 2`, or `stride` is not in
/// `1..=window_tokens`.
pub fn windows(num_tokens: usize, window_tokens: usize, stride: usize) -> Result<Vec<Window>> {
    if window_tokens < 2 {
        return Err(EvalError::Setting {
            setting: "window_tokens",
            found: window_tokens.to_string(),
            expected: "at least 2",
        });
    }
    if stride == 0 || stride > window_tokens {
        return Err(EvalError::Setting {
            setting: "stride",
            found: stride.to_string(),
            expected: "a number from 1 to window_tokens",
        });
    }
    if num_tokens < 2 {
        return Err(EvalError::TooFew { what: "tokens of the text", expected: 2, found: num_tokens });
    }
    let mut windows = Vec::new();
    let mut scored_until = 0;
    for start in (0..num_tokens).step_by(stride) {
        let end = num_tokens.min(start.saturating_add(window_tokens));
        let scored = scored_until.max(start + 1)..end;
        // The rest of a text may be one token, which nothing precedes in its window.
        if !scored.is_empty() {
            windows.push(Window { tokens: start..end, scored });
        }
        scored_until = end;
        if end == num_tokens {
            break;
        }
    }
    Ok(windows)
}

/// Perplexity from the summed negative log-likelihood (nats) of each window's scored tokens:
/// `exp(sum / number of scored tokens)`.
///
/// # Errors
/// If there is not one sum for each window, a sum is not finite, or no token counts.
pub fn perplexity(windows: &[Window], negative_log_likelihoods: &[f64]) -> Result<f64> {
    check_lengths("windows", windows.len(), "negative_log_likelihoods", negative_log_likelihoods.len())?;
    let (mut total, mut num_scored) = (0.0, 0_usize);
    for (index, (window, &value)) in windows.iter().zip(negative_log_likelihoods).enumerate() {
        if !value.is_finite() {
            return Err(EvalError::NotFinite { what: "negative_log_likelihoods", index, value });
        }
        total += value;
        num_scored += window.scored.len();
    }
    if num_scored == 0 {
        return Err(EvalError::TooFew { what: "scored tokens", expected: 1, found: 0 });
    }
    Ok((total / num_scored as f64).exp())
}

#[cfg(test)]
mod tests {

    use super::*;

    fn drawn(num_tokens: usize, window_tokens: usize, stride: usize) -> Vec<[usize; 4]> {
        windows(num_tokens, window_tokens, stride)
            .unwrap()
            .into_iter()
            .map(|w| [w.tokens.start, w.tokens.end, w.scored.start, w.scored.end])
            .collect()
    }

    #[test]
    fn windows_by_hand() {
        assert_eq!(drawn(10, 4, 2), [[0, 4, 1, 4], [2, 6, 4, 6], [4, 8, 6, 8], [6, 10, 8, 10]]);
        assert_eq!(drawn(9, 4, 3), [[0, 4, 1, 4], [3, 7, 4, 7], [6, 9, 7, 9]]);
        assert_eq!(drawn(9, 4, 4), [[0, 4, 1, 4], [4, 8, 5, 8]]);
        assert_eq!(drawn(3, 2048, 512), [[0, 3, 1, 3]]);
    }

    #[test]
    fn every_token_but_the_first_counts_once() {
        for num_tokens in 2..40 {
            for window_tokens in 2..12 {
                for stride in 1..window_tokens {
                    let scored: Vec<usize> = windows(num_tokens, window_tokens, stride)
                        .unwrap()
                        .into_iter()
                        .flat_map(|window| window.scored)
                        .collect();
                    assert_eq!(scored, (1..num_tokens).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn perplexity_is_the_exponential_of_the_mean() {
        let windows = windows(5, 3, 2).unwrap();
        // Four scored tokens, each with probability one eighth.
        let sums = [2.0 * 8f64.ln(), 2.0 * 8f64.ln()];
        assert!((perplexity(&windows, &sums).unwrap() - 8.0).abs() < 1e-12);
    }

    #[test]
    fn bad_settings_and_sums_are_errors() {
        assert!(windows(1, 4, 2).is_err());
        assert!(windows(9, 1, 1).is_err());
        assert!(windows(9, 4, 0).is_err());
        assert!(windows(9, 4, 5).is_err());
        assert!(perplexity(&[], &[]).is_err());
        let windows = windows(5, 3, 2).unwrap();
        assert!(perplexity(&windows, &[1.0]).is_err());
        assert!(perplexity(&windows, &[1.0, f64::INFINITY]).is_err());
    }
}
