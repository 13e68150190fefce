//! Alignment: how far each query is from its positive, with the gradient in closed form.

use super::contrastive::{Vectors, dot, through_norm, unit};

/// The loss and its gradients.
#[derive(Debug, Clone)]
pub(super) struct Alignment {
    /// Mean of one minus the cosine.
    pub(super) loss: f64,
    /// d loss / d queries, `[B, D]`.
    pub(super) query: Vec<f32>,
    /// d loss / d positives, `[B, D]`.
    pub(super) positive: Vec<f32>,
}

/// `1/B sum_i (1 - cos(query_i, positive_i))`; `query` and `positive` are `[B, D]`.
pub(super) fn align(vectors: &Vectors, d: usize) -> Alignment {
    let (query, positive) = (unit(&vectors.query, d), unit(&vectors.positive, d));
    let pairs = (vectors.query.len() / d).max(1) as f32;
    let cosines = query.values.chunks(d).zip(positive.values.chunks(d)).map(|(q, p)| f64::from(dot(q, p)));
    let loss = cosines.map(|cosine| 1.0 - cosine).sum::<f64>() / f64::from(pairs);
    let towards = |other: &[f32]| other.iter().map(|x| -x / pairs).collect::<Vec<f32>>();
    let (mut d_query, mut d_positive) = (towards(&positive.values), towards(&query.values));
    through_norm(&mut d_query, &query, d);
    through_norm(&mut d_positive, &positive, d);
    Alignment { loss, query: d_query, positive: d_positive }
}

#[cfg(test)]
mod tests {
    use super::super::contrastive::tests::numbers;
    use super::*;

    #[test]
    fn equal_opposite_and_orthogonal_pairs_by_hand() {
        let query = vec![2.0, 0.0, 2.0, 0.0, 2.0, 0.0];
        let vectors = Vectors { query, positive: vec![3.0, 0.0, -3.0, 0.0, 0.0, 3.0], negative: vec![] };
        let found = align(&vectors, 2);
        assert_eq!(found.loss, 1.0); // (0 + 2 + 1) / 3
        // The third query turns towards its positive: -1/3 over its length.
        assert_eq!(found.query, [0.0, 0.0, 0.0, 0.0, 0.0, -1.0 / 6.0]);
    }

    #[test]
    fn gradient_equals_finite_differences() {
        let d = 5;
        let vectors = Vectors { query: numbers(15, 0.3), positive: numbers(15, 0.45), negative: vec![] };
        let found = align(&vectors, d);
        let h = 1e-2f32;
        for i in 0..15 {
            for (which, got) in [(0, found.query[i]), (1, found.positive[i])] {
                let moved = |by: f32| {
                    let mut moved = vectors.clone();
                    if which == 0 {
                        moved.query[i] += by
                    } else {
                        moved.positive[i] += by
                    }
                    align(&moved, d).loss
                };
                let want = (moved(h) - moved(-h)) / f64::from(2.0 * h);
                // f32 cosines of order 1 over 2h, and h squared times the curvature.
                assert!((f64::from(got) - want).abs() < 1e-3, "{i}: {got} against {want}");
            }
        }
    }
}
