//! Distillation of similarities: the cosines between the texts of a batch are to rank as a teacher's do.
//!
//! The loss is one minus Pearson's correlation of the two sets of cosines (DIST, arXiv 2205.10536, with all pairs of
//! the batch as one relation), with its gradient in closed form. It asks for no scale: the student's cosines may be
//! spread as the contrastive loss likes them. The teachers here are the base model's own training-free embeddings, so
//! that no label and no second model is needed.

use super::contrastive::{Unit, dot, through_norm, unit};
use rayon::prelude::*;

/// Cosines of all pairs of texts of a batch, averaged over the teachers.
#[derive(Debug, Clone)]
pub struct TeacherCosines {
    /// Pairs (i, j), i < j, in order of i, then j; standardised over the pairs, or all 0 where they are equal.
    pairs: Vec<f64>,
    num_texts: usize,
}

/// The loss and its gradient.
#[derive(Debug, Clone)]
pub struct Distillation {
    /// One minus Pearson's correlation with the teacher: 0 to 2.
    pub loss: f64,
    /// d loss / d vectors, `[B, D]`.
    pub gradient: Vec<f32>,
}

impl TeacherCosines {
    /// From the vectors of each teacher.
    ///
    /// # Shapes
    /// `vectors`: for each teacher `[B, D]`, row-major.
    ///
    /// # Panics
    /// When there is no teacher, or teachers differ in their number of texts.
    pub fn new(vectors: &[Vec<f32>], d: usize) -> Self {
        let num_texts = vectors[0].len() / d;
        assert!(vectors.iter().all(|v| v.len() == num_texts * d), "teachers of one batch");
        let mut pairs = vec![0f64; num_texts * num_texts.saturating_sub(1) / 2];
        for teacher in vectors {
            pairs.iter_mut().zip(cosines(&unit(teacher, d), d)).for_each(|(sum, cosine)| *sum += cosine);
        }
        standardise(&mut pairs);
        Self { pairs, num_texts }
    }
}

/// Cosines of the pairs (i, j), i < j.
fn cosines(z: &Unit, d: usize) -> Vec<f64> {
    let n = z.values.len() / d;
    let rows = (0..n).into_par_iter().map(|i| (i + 1..n).map(|j| f64::from(dot(z.row(i, d), z.row(j, d)))).collect());
    rows.collect::<Vec<Vec<f64>>>().concat()
}

/// Mean 0 and deviation 1; the deviation that there was, or 0 where all numbers are equal and become 0.
fn standardise(numbers: &mut [f64]) -> f64 {
    /// Below this, differences of cosines are rounding of f32.
    const STILL: f64 = 1e-7;
    let n = numbers.len().max(1) as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    let deviation = (numbers.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt();
    let moving = deviation > STILL;
    numbers.iter_mut().for_each(|x| *x = if moving { (*x - mean) / deviation } else { 0.0 });
    if moving { deviation } else { 0.0 }
}

/// `loss = 1 - corr(cos(z_i, z_j), teacher_ij)` over the pairs i < j.
///
/// # Shapes
/// `vectors`: `[B, D]`, row-major.
///
/// # Panics
/// When there are not as many vectors as the teacher had texts.
pub fn distil(vectors: &[f32], d: usize, teacher: &TeacherCosines) -> Distillation {
    let n = teacher.num_texts;
    assert_eq!(vectors.len(), n * d, "the teacher saw {n} texts");
    let z = unit(vectors, d);
    let mut own = cosines(&z, d);
    let deviation = standardise(&mut own);
    let num_pairs = own.len().max(1) as f64;
    let correlation = own.iter().zip(&teacher.pairs).map(|(x, y)| x * y).sum::<f64>() / num_pairs;
    let mut gradient = vec![0f32; n * d];
    if deviation > 0.0 {
        // d corr / d x = (y - corr x) / (pairs deviation), x and y standardised
        let slope = |at: usize| (correlation * own[at] - teacher.pairs[at]) / (num_pairs * deviation);
        let first_of = |i: usize| i * (2 * n - i - 1) / 2;
        gradient.par_chunks_mut(d).enumerate().for_each(|(i, gradient)| {
            for j in (0..n).filter(|j| *j != i) {
                let (low, high) = (i.min(j), i.max(j));
                let slope = slope(first_of(low) + high - low - 1) as f32;
                gradient.iter_mut().zip(z.row(j, d)).for_each(|(g, x)| *g += slope * x);
            }
        });
        through_norm(&mut gradient, &z, d);
    }
    Distillation { loss: 1.0 - correlation, gradient }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::contrastive::tests::numbers;

    #[test]
    fn gradient_equals_finite_differences() {
        let (d, b, h) = (5, 4, 1e-3f32);
        let teacher = TeacherCosines::new(&[numbers(b * d, 0.3), numbers(b * d, 2.0)], d);
        let vectors = numbers(b * d, 1.1);
        let got = distil(&vectors, d, &teacher);
        assert!(got.loss > 1e-3, "{}", got.loss);
        for i in 0..b * d {
            let loss = |sign: f32| {
                let mut moved = vectors.clone();
                moved[i] += sign * h;
                distil(&moved, d, &teacher).loss
            };
            let want = (loss(1.0) - loss(-1.0)) / f64::from(2.0 * h);
            // Central differences of an f32 loss of order 1: error near 1e-7 / 2h plus h^2 times the curvature.
            assert!((f64::from(got.gradient[i]) - want).abs() < 2e-3 * (1.0 + want.abs()), "{i}");
        }
    }

    #[test]
    fn a_student_that_is_its_teacher_has_nothing_to_learn() {
        let (d, b) = (6, 5);
        let vectors = numbers(b * d, 0.9);
        let got = distil(&vectors, d, &TeacherCosines::new(std::slice::from_ref(&vectors), d));
        assert!(got.loss.abs() < 1e-9, "{}", got.loss);
        assert!(got.gradient.iter().all(|g| g.abs() < 1e-6));
    }

    /// Three directions in the plane, by hand: cosines 0, c, s of the student; 1, 0, 0 of the teacher.
    #[test]
    fn correlation_by_hand() {
        let (c, s) = (0.6f32, 0.8f32);
        let teacher = TeacherCosines::new(&[vec![1.0, 0.0, 2.0, 0.0, 0.0, 3.0]], 2);
        let got = distil(&[1.0, 0.0, 0.0, 1.0, 2.0 * c, 2.0 * s], 2, &teacher);
        let (mean, cosines) = (1.4 / 3.0, [0.0, 0.6, 0.8]);
        let deviation = (cosines.iter().map(|x: &f64| (x - mean).powi(2)).sum::<f64>() / 3.0).sqrt();
        let want = 1.0
            - (0.0 - mean) / deviation * (2.0 / 3.0) / (2f64.sqrt() / 3.0) / 3.0
            - ((0.6 - mean) + (0.8 - mean)) / deviation * (-1.0 / 3.0) / (2f64.sqrt() / 3.0) / 3.0;
        assert!((got.loss - want).abs() < 1e-6, "{} {want}", got.loss);
    }

    #[test]
    fn equal_texts_and_equal_vectors_stay_finite() {
        let still = TeacherCosines::new(&[vec![1.0; 9]], 3);
        let got = distil(&numbers(9, 0.2), 3, &still);
        assert!(got.loss == 1.0 && got.gradient.iter().all(|g| g.is_finite()));
        let got = distil(&[1.0; 9], 3, &TeacherCosines::new(&[numbers(9, 0.2)], 3));
        assert!(got.loss == 1.0 && got.gradient.iter().all(|g| *g == 0.0));
        let one = distil(&[1.0; 3], 3, &TeacherCosines::new(&[vec![1.0; 3]], 3));
        assert!(one.loss == 1.0 && one.gradient == [0.0; 3]);
    }
}
