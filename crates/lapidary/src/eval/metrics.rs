//! Rank correlation, cosine similarity and accuracy.

use super::error::{EvalError, Result, check_lengths};

/// Spearman's rank correlation: Pearson's correlation of the ranks, ties sharing their average rank.
///
/// # Errors
/// If the lengths differ, there are fewer than two entries, an entry is NaN, or one side is
/// constant (the correlation is then 0/0).
pub fn spearman(x: &[f64], y: &[f64]) -> Result<f64> {
    check_lengths("x", x.len(), "y", y.len())?;
    if x.len() < 2 {
        return Err(EvalError::TooFew { what: "spearman", expected: 2, found: x.len() });
    }
    let (rank_x, rank_y) = (average_ranks("x", x)?, average_ranks("y", y)?);
    // Ranks always sum to n (n + 1) / 2, whatever the ties.
    let mean = (x.len() as f64 + 1.0) / 2.0;
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (rx, ry) in rank_x.iter().zip(&rank_y) {
        let (dx, dy) = (rx - mean, ry - mean);
        xy += dx * dy;
        xx += dx * dx;
        yy += dy * dy;
    }
    for (what, spread) in [("x", xx), ("y", yy)] {
        if spread == 0.0 {
            return Err(EvalError::Constant { what, count: x.len() });
        }
    }
    Ok((xy / (xx * yy).sqrt()).clamp(-1.0, 1.0))
}

/// Cosine of the angle between two vectors, summed in f64; 0 if either is the zero vector.
///
/// # Shapes
/// `a`, `b`: `[D]`.
///
/// # Panics
/// If the widths differ.
#[must_use]
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    cosine_f64(a, b) as f32
}

/// [`cosine`] before it is rounded to f32, for uses that rank it.
pub(crate) fn cosine_f64(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "cosine of vectors of different widths");
    let (mut ab, mut aa, mut bb) = (0.0_f64, 0.0_f64, 0.0_f64);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    // An f32 squared never leaves the range of f64, so zero here means the zero vector.
    if aa == 0.0 || bb == 0.0 {
        return 0.0;
    }
    ab / (aa.sqrt() * bb.sqrt())
}

/// Share of entries where `predicted` equals `expected`, in 0..=1.
///
/// # Errors
/// If the lengths differ or there is no entry.
pub fn accuracy<T: PartialEq>(predicted: &[T], expected: &[T]) -> Result<f64> {
    check_lengths("predicted", predicted.len(), "expected", expected.len())?;
    if expected.is_empty() {
        return Err(EvalError::TooFew { what: "accuracy", expected: 1, found: 0 });
    }
    let num_equal = predicted.iter().zip(expected).filter(|(p, e)| p == e).count();
    Ok(num_equal as f64 / expected.len() as f64)
}

/// Ranks from 1, equal values sharing the average of the ranks they take up.
fn average_ranks(what: &'static str, values: &[f64]) -> Result<Vec<f64>> {
    if let Some(index) = values.iter().position(|value| value.is_nan()) {
        return Err(EvalError::NotFinite { what, index, value: values[index] });
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        // `==`, not `total_cmp`: 0.0 and -0.0 are a tie, and they sort next to each other.
        let num_tied = order[start..].iter().take_while(|&&index| values[index] == values[order[start]]).count();
        let rank = start as f64 + (num_tied as f64 + 1.0) / 2.0;
        for &index in &order[start..start + num_tied] {
            ranks[index] = rank;
        }
        start += num_tied;
    }
    Ok(ranks)
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn ties_share_their_average_rank() {
        let ranks = average_ranks("x", &[3.0, 1.0, 3.0, -0.0, 0.0]).unwrap();
        assert_eq!(ranks, [4.5, 3.0, 4.5, 1.5, 1.5]);
    }

    #[test]
    fn undefined_correlations_are_errors() {
        assert!(matches!(spearman(&[1.0], &[1.0]), Err(EvalError::TooFew { .. })));
        assert!(matches!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]), Err(EvalError::NotFinite { index: 1, .. })));
        assert!(matches!(spearman(&[1.0, 1.0], &[1.0, 2.0]), Err(EvalError::Constant { what: "x", .. })));
        assert!(matches!(spearman(&[1.0, 1.0], &[1.0]), Err(EvalError::LengthMismatch { .. })));
    }

    #[test]
    fn infinities_rank_as_extremes() {
        let x = [f64::NEG_INFINITY, 0.0, f64::INFINITY];
        assert_eq!(spearman(&x, &[1.0, 2.0, 3.0]), Ok(1.0));
    }

    #[test]
    fn cosine_of_known_angles() {
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert_eq!(cosine(&[3.0, 4.0], &[-3.0, -4.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
        assert!((cosine(&[1.0, 1.0], &[1.0, 0.0]) - 0.5_f32.sqrt()).abs() < 1e-7);
        assert_eq!(cosine(&[1e-30, 0.0], &[1e30, 0.0]), 1.0);
    }

    #[test]
    fn accuracy_counts_equal_entries() {
        assert_eq!(accuracy(&[1, 2, 3, 4], &[1, 0, 3, 0]), Ok(0.5));
        assert!(accuracy::<u8>(&[], &[]).is_err());
    }
}
