//! InfoNCE (arXiv 1807.03748) over cosine similarities, with its gradient in closed form.
//!
//! A closed form lets the loss be taken over the vectors of many micro-batches before any of them is run with a
//! graph (GradCache, arXiv 2101.06983): the vectors' gradients are then fed back one micro-batch at a time.

use kernels::{Given, matmul};
use rayon::prelude::*;

/// Pooled vectors of a global batch, row-major `[_, D]`.
#[derive(Debug, Clone, Default)]
pub struct Vectors {
    /// Queries, `[B, D]`.
    pub query: Vec<f32>,
    /// The positive of each query, `[B, D]`; every other positive is its in-batch negative.
    pub positive: Vec<f32>,
    /// Hard negatives, shared by all queries, `[M, D]`.
    pub negative: Vec<f32>,
}

impl Vectors {
    /// Multiplies every number by `factor`.
    pub(super) fn scale(&mut self, factor: f32) {
        let Self { query, positive, negative } = self;
        [query, positive, negative].into_iter().flatten().for_each(|x| *x *= factor);
    }
}

/// The loss and its gradients.
#[derive(Debug, Clone)]
pub struct InfoNce {
    /// Mean cross-entropy of each query's positive among all candidates, nats.
    pub loss: f64,
    /// d loss / d vectors.
    pub gradient: Vectors,
    /// d loss / d log(1 / temperature).
    pub log_scale_gradient: f64,
}

/// Vectors scaled to length one, row-major `[_, D]`, and the lengths they had.
pub(super) struct Unit {
    pub(super) values: Vec<f32>,
    norms: Vec<f32>,
}

impl Unit {
    pub(super) fn row(&self, i: usize, d: usize) -> &[f32] {
        &self.values[i * d..(i + 1) * d]
    }
}

pub(super) fn unit(vectors: &[f32], d: usize) -> Unit {
    /// Keeps a zero vector finite, as `torch.nn.functional.normalize` does.
    const FLOOR: f32 = 1e-12;
    let norms: Vec<f32> = vectors.chunks(d).map(|v| dot(v, v).sqrt().max(FLOOR)).collect();
    let values = vectors.chunks(d).zip(&norms).flat_map(|(v, n)| v.iter().map(move |x| x / n)).collect();
    Unit { values, norms }
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    /// Sums side by side, which the compiler keeps in vectors: one sum would wait for itself at every number.
    const SUMS: usize = 16;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<SUMS>(), b.as_chunks::<SUMS>());
    let mut sums = [0f32; SUMS];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Turns the gradient by unit vectors into the gradient by the vectors: the part along the vector is lost.
pub(super) fn through_norm(gradient: &mut [f32], unit: &Unit, d: usize) {
    for ((g, u), norm) in gradient.chunks_mut(d).zip(unit.values.chunks(d)).zip(&unit.norms) {
        let along = dot(g, u);
        g.iter_mut().zip(u).for_each(|(g, u)| *g = (*g - along * u) / norm);
    }
}

/// `loss = -1/B sum_i log softmax_j(scale * cos(query_i, candidate_j))[i]`, candidates = positives then negatives;
/// `scale = 1 / temperature`.
///
/// # Panics
/// When the buffers are no whole rows of `d`, or there is no query.
pub fn info_nce(vectors: &Vectors, d: usize, scale: f32) -> InfoNce {
    let b = vectors.query.len() / d;
    assert!(
        b > 0
            && vectors.query.len() == b * d
            && vectors.positive.len() == b * d
            && vectors.negative.len().is_multiple_of(d)
    );
    let query = unit(&vectors.query, d);
    let candidates = unit(&[vectors.positive.as_slice(), &vectors.negative].concat(), d);
    let m = candidates.norms.len();
    let similarities = matmul((b, m, d), Given::AsIs(&query.values), Given::Transposed(&candidates.values));
    // Of each candidate, d loss / d similarity; per query, loss and d loss / d log scale.
    let mut slopes = vec![0f32; b * m];
    let rows: Vec<(f64, f64)> = (slopes.par_chunks_mut(m).zip(similarities.par_chunks(m)).enumerate())
        .map(|(i, (slopes, similarity))| {
            let max = similarity.iter().copied().fold(f32::NEG_INFINITY, f32::max) * scale;
            let exp: Vec<f64> = similarity.iter().map(|s| f64::from(s * scale - max).exp()).collect();
            let sum: f64 = exp.iter().sum();
            let loss = sum.ln() - f64::from(similarity[i] * scale - max);
            let slope = |j: usize| (exp[j] / sum - f64::from(u8::from(i == j))) / b as f64;
            let log_scale: f64 = (0..m).map(|j| slope(j) * f64::from(similarity[j] * scale)).sum();
            slopes.iter_mut().enumerate().for_each(|(j, to)| *to = (slope(j) * f64::from(scale)) as f32);
            (loss, log_scale)
        })
        .collect();
    let mut d_query = matmul((b, d, m), Given::AsIs(&slopes), Given::AsIs(&candidates.values));
    let mut d_candidates = matmul((m, d, b), Given::Transposed(&slopes), Given::AsIs(&query.values));
    through_norm(&mut d_query, &query, d);
    through_norm(&mut d_candidates, &candidates, d);
    let negative = d_candidates.split_off(b * d);
    InfoNce {
        loss: rows.iter().map(|r| r.0).sum::<f64>() / b as f64,
        gradient: Vectors { query: d_query, positive: d_candidates, negative },
        log_scale_gradient: rows.iter().map(|r| r.1).sum(),
    }
}

/// Mean cosine of all pairs of different vectors, from the norm of the sum of their directions: near 1 when the embedding
/// has collapsed.
pub(super) fn mean_pairwise_cosine(vectors: &[f32], d: usize) -> f64 {
    let n = (vectors.len() / d) as f64;
    let mut sum = vec![0f64; d];
    for v in unit(vectors, d).values.chunks(d) {
        sum.iter_mut().zip(v).for_each(|(s, x)| *s += f64::from(*x));
    }
    if n < 2.0 { 0.0 } else { (sum.iter().map(|s| s * s).sum::<f64>() - n) / (n * (n - 1.0)) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::train) fn numbers(count: usize, salt: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7 + salt).sin() + 0.1 * (i as f32 * salt).cos()).collect()
    }

    #[test]
    fn gradient_equals_finite_differences() {
        let (d, scale) = (5, 20.0);
        let vectors = Vectors { query: numbers(15, 0.3), positive: numbers(15, 0.45), negative: numbers(10, 1.1) };
        let got = info_nce(&vectors, d, scale);
        let h = 1e-3f32;
        let at = |change: &dyn Fn(&mut Vectors, f32)| {
            let loss = |sign: f32| {
                let mut moved = vectors.clone();
                change(&mut moved, sign * h);
                info_nce(&moved, d, scale).loss
            };
            (loss(1.0) - loss(-1.0)) / f64::from(2.0 * h)
        };
        let close = |got: f32, want: f64, what: &str| {
            // Central differences of an f32 loss of order 1: error near 1e-7 / 2h plus h^2 times the curvature.
            assert!((f64::from(got) - want).abs() < 2e-3 * (1.0 + want.abs()), "{what}: {got} against {want}");
        };
        for i in 0..15 {
            close(got.gradient.query[i], at(&|v, h| v.query[i] += h), "query");
            close(got.gradient.positive[i], at(&|v, h| v.positive[i] += h), "positive");
        }
        for i in 0..10 {
            close(got.gradient.negative[i], at(&|v, h| v.negative[i] += h), "negative");
        }
        let by_log_scale = (info_nce(&vectors, d, scale * h.exp()).loss
            - info_nce(&vectors, d, scale * (-h).exp()).loss)
            / f64::from(2.0 * h);
        close(got.log_scale_gradient as f32, by_log_scale, "log scale");
    }

    #[test]
    fn equal_vectors_have_the_loss_of_chance_and_cosine_one() {
        let got = info_nce(&Vectors { query: vec![1.0; 12], positive: vec![2.0; 12], negative: vec![] }, 3, 20.0);
        assert!((got.loss - 4f64.ln()).abs() < 1e-6);
        assert!((mean_pairwise_cosine(&[1.0; 12], 3) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_zero_vector_stays_finite() {
        let got = info_nce(&Vectors { query: vec![0.0; 4], positive: vec![1.0; 4], negative: vec![] }, 2, 20.0);
        assert!(got.loss.is_finite() && got.gradient.query.iter().all(|g| g.is_finite()));
    }
}
