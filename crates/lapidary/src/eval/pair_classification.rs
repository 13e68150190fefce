//! Pair classification as MTEB scores it: average precision of pairs that belong together or not, ranked by each of four
//! similarities.

use super::error::{EvalError, Result, check_lengths, check_vectors};
use super::metrics::cosine_f64;

/// Average precision of `scores` for the entries that are `relevant`, in 0..=1, as scikit-learn's
/// `average_precision_score`: the sum over thresholds of precision times the gain in recall; equal scores share one
/// threshold.
///
/// # Errors
/// When the lengths differ, a score is NaN, or no entry is relevant (the score is then 0/0).
pub fn average_precision(relevant: &[bool], scores: &[f64]) -> Result<f64> {
    check_lengths("relevant", relevant.len(), "scores", scores.len())?;
    if let Some(index) = scores.iter().position(|score| score.is_nan()) {
        return Err(EvalError::NotFinite { what: "scores", index, value: scores[index] });
    }
    let total = relevant.iter().filter(|relevant| **relevant).count() as f64;
    if total == 0.0 {
        return Err(EvalError::TooFew { what: "relevant entries", expected: 1, found: 0 });
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let (mut found, mut seen, mut sum) = (0.0, 0.0, 0.0);
    for group in order.chunk_by(|a, b| scores[*a] == scores[*b]) {
        let gained = group.iter().filter(|entry| relevant[**entry]).count() as f64;
        (found, seen) = (found + gained, seen + group.len() as f64);
        sum += found / seen * gained / total;
    }
    Ok(sum)
}

/// Average precision of the pairs (`first[i]`, `second[i]`) by each similarity, in 0..=1, and the highest of them first;
/// named as the `mteb` package names them.
///
/// # Errors
/// When vectors or labels do not fit together, or no pair is labelled 1.
pub fn score_pairs<E: AsRef<[f32]>>(first: &[E], second: &[E], labels: &[bool]) -> Result<[(&'static str, f64); 5]> {
    check_lengths("first vectors", first.len(), "second vectors", second.len())?;
    let (width, other) = (check_vectors("first vectors", first)?, check_vectors("second vectors", second)?);
    if width != other {
        return Err(EvalError::Width { what: "second vectors", row: 0, expected: width, found: other });
    }
    let by = |similarity: &dyn Fn(&[f32], &[f32]) -> f64| {
        let scores: Vec<f64> = first.iter().zip(second).map(|(a, b)| similarity(a.as_ref(), b.as_ref())).collect();
        average_precision(labels, &scores)
    };
    let (dot, cosine) = (by(&|a, b| sum_over(a, b, |x, y| x * y))?, by(&cosine_f64)?);
    // Distances: the nearer, the more alike.
    let euclidean = by(&|a, b| -sum_over(a, b, |x, y| (x - y).powi(2)))?;
    let manhattan = by(&|a, b| -sum_over(a, b, |x, y| (x - y).abs()))?;
    Ok([
        ("max_ap", dot.max(cosine).max(euclidean).max(manhattan)),
        ("cosine_ap", cosine),
        ("dot_ap", dot),
        ("euclidean_ap", euclidean),
        ("manhattan_ap", manhattan),
    ])
}

fn sum_over(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    a.iter().zip(b).map(|(x, y)| term(f64::from(*x), f64::from(*y))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_precision_by_hand() {
        // Ranks of the relevant: 1 and 3. (1/1 + 2/3) / 2.
        let found = average_precision(&[true, false, true, false], &[0.9, 0.8, 0.7, 0.1]).unwrap();
        assert!((found - 5.0 / 6.0).abs() < 1e-12);
        // One threshold: precision 1/2 at recall 1.
        assert_eq!(average_precision(&[true, false], &[0.5, 0.5]), Ok(0.5));
    }

    #[test]
    fn bad_input_is_an_error() {
        assert!(average_precision(&[false], &[1.0]).is_err());
        assert!(average_precision(&[true], &[f64::NAN]).is_err());
        assert!(average_precision(&[true], &[]).is_err());
        assert!(score_pairs(&[vec![1.0]], &[vec![1.0, 2.0]], &[true]).is_err());
    }
}
