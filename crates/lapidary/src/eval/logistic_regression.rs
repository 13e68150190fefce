//! Logistic regression with an L2 penalty, binary or multinomial, by the steps of scikit-learn's `LogisticRegression`
//! with its `lbfgs` solver.
//!
//! That solver stops at the first gradient below its tolerance, on vectors with a large common part far from the
//! minimum; so the parameters are its parameters too: one vector of weights for two classes. It computes in f32 where
//! the vectors are f32; here all is f64, which differs by roundings alone. Only where a gradient comes within roundings
//! of the tolerance can they decide whether a step is the last.

use super::error::{EvalError, Result, check_lengths, check_vectors};
use super::lbfgs::{Stop, minimise};

/// Settings, named and by default as in scikit-learn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogisticRegressionConfig {
    /// Inverse strength of the L2 penalty on the weights; the intercepts are free.
    pub c: f64,
    /// Most steps of the solver.
    pub max_iter: usize,
    /// Largest absolute entry of the gradient of the mean loss that counts as zero.
    pub tol: f64,
}

impl Default for LogisticRegressionConfig {
    fn default() -> Self {
        Self { c: 1.0, max_iter: 100, tol: 1e-4 }
    }
}

/// A fitted classifier.
#[derive(Debug, Clone)]
pub struct LogisticRegression {
    width: usize,
    /// One for two classes, whose sign decides; else the number of classes.
    num_outputs: usize,
    /// `[D + 1, num_outputs]`, the last row holding the intercepts.
    weights: Vec<f64>,
    num_iterations: usize,
}

impl LogisticRegression {
    /// Fits classes `0..num_classes` to vectors.
    ///
    /// Minimises `mean of cross-entropies + |weights|^2 / (2 c B)`. Two classes share one vector of
    /// weights, that of the second.
    ///
    /// # Shapes
    /// `vectors`: `[B, D]`; `labels`: `[B]`.
    ///
    /// # Errors
    /// If vectors are ragged or not finite, labels are out of range or fewer or more than the
    /// vectors, there are fewer than two classes, or a setting is not positive.
    pub fn fit<E: AsRef<[f32]>>(
        vectors: &[E],
        labels: &[usize],
        num_classes: usize,
        config: &LogisticRegressionConfig,
    ) -> Result<Self> {
        let width = check_vectors("training vectors", vectors)?;
        check_lengths("training vectors", vectors.len(), "training labels", labels.len())?;
        check_labels("training labels", labels, num_classes)?;
        check_config(num_classes, config)?;
        let num_outputs = if num_classes == 2 { 1 } else { num_classes };
        let problem = Problem {
            rows: vectors.iter().map(|vector| widen(vector.as_ref())).collect(),
            labels,
            num_outputs,
            penalty: 1.0 / (config.c * vectors.len() as f64),
        };
        let mut weights = vec![0.0; (width + 1) * num_outputs];
        let mut residuals = vec![0.0; vectors.len() * num_outputs];
        let stop = Stop { max_iterations: config.max_iter, tolerance: config.tol };
        let num_iterations =
            minimise(&mut weights, stop, |weights, gradient| problem.evaluate(weights, gradient, &mut residuals));
        Ok(Self { width, num_outputs, weights, num_iterations })
    }

    /// The most probable class of each vector; the lowest one of equals.
    ///
    /// # Errors
    /// If a vector is not finite or has another width than those fitted to.
    pub fn predict<E: AsRef<[f32]>>(&self, vectors: &[E]) -> Result<Vec<usize>> {
        let width = check_vectors("vectors to classify", vectors)?;
        if width != self.width {
            return Err(EvalError::Width { what: "vectors to classify", row: 0, expected: self.width, found: width });
        }
        let mut scores = vec![0.0; self.num_outputs];
        let classes = vectors.iter().map(|vector| {
            score(&widen(vector.as_ref()), &self.weights, &mut scores);
            if let [score] = scores[..] {
                return usize::from(score > 0.0);
            }
            let mut best = 0;
            for (class, score) in scores.iter().enumerate() {
                if *score > scores[best] {
                    best = class;
                }
            }
            best
        });
        Ok(classes.collect())
    }

    /// `[D + 1]` for each class, for two classes those of the second alone: the weights, then the intercept.
    #[must_use]
    pub fn coefficients(&self) -> Vec<Vec<f64>> {
        let of = |output| self.weights.iter().skip(output).step_by(self.num_outputs).copied().collect();
        (0..self.num_outputs).map(of).collect()
    }

    /// Steps that the solver took.
    #[must_use]
    pub fn num_iterations(&self) -> usize {
        self.num_iterations
    }
}

/// Checks that labels lie in `0..num_classes`.
pub(crate) fn check_labels(what: &'static str, labels: &[usize], num_classes: usize) -> Result<()> {
    match labels.iter().position(|&label| label >= num_classes) {
        None => Ok(()),
        Some(entry) => Err(EvalError::OutOfRange { what, entry, index: labels[entry], count: num_classes }),
    }
}

fn check_config(num_classes: usize, config: &LogisticRegressionConfig) -> Result<()> {
    if num_classes < 2 {
        return Err(EvalError::TooFew { what: "classes", expected: 2, found: num_classes });
    }
    for (setting, value) in [("c", config.c), ("tol", config.tol)] {
        if !(value.is_finite() && value > 0.0) {
            return Err(EvalError::Setting { setting, found: value.to_string(), expected: "a positive number" });
        }
    }
    Ok(())
}

/// The vector in f64, and a one that the intercepts multiply.
fn widen(vector: &[f32]) -> Vec<f64> {
    let values = vector.iter().map(|&value| f64::from(value));
    values.chain(std::iter::once(1.0)).collect()
}

struct Problem<'a> {
    /// `[B, D + 1]`.
    rows: Vec<Vec<f64>>,
    labels: &'a [usize],
    num_outputs: usize,
    /// Factor of `|weights|^2 / 2` beside the mean loss.
    penalty: f64,
}

impl Problem<'_> {
    /// Mean loss plus penalty at `weights`, and its gradient, both `[D + 1, num_outputs]`.
    fn evaluate(&self, weights: &[f64], gradient: &mut [f64], residuals: &mut [f64]) -> f64 {
        let num_outputs = self.num_outputs;
        let mean = 1.0 / self.rows.len() as f64;
        let mut loss = 0.0;
        let each = residuals.chunks_exact_mut(num_outputs);
        for ((row, &label), residual) in self.rows.iter().zip(self.labels).zip(each) {
            score(row, weights, residual);
            loss += cross_entropy_residual(residual, label) * mean;
            residual.iter_mut().for_each(|entry| *entry *= mean);
        }

        let penalised = weights.len() - num_outputs;
        let mut square = 0.0;
        for (entry, weight) in gradient[..penalised].iter_mut().zip(weights) {
            *entry = self.penalty * weight;
            square += weight * weight;
        }
        gradient[penalised..].fill(0.0);
        for (rows, residuals) in self.rows.chunks(4).zip(residuals.chunks(4 * num_outputs)) {
            for (dimension, entries) in gradient.chunks_exact_mut(num_outputs).enumerate() {
                // A short last chunk ends before the fourth row.
                let at = |i: usize| rows.get(i).map_or(0.0, |row| row[dimension]);
                add_four(entries, [at(0), at(1), at(2), at(3)], residuals);
            }
        }
        loss + 0.5 * self.penalty * square
    }
}

/// `scores = row x weights`, four rows of weights at a time.
fn score(row: &[f64], weights: &[f64], scores: &mut [f64]) {
    scores.fill(0.0);
    for (factors, weights) in row.chunks(4).zip(weights.chunks(4 * scores.len())) {
        let at = |i: usize| factors.get(i).copied().unwrap_or(0.0);
        add_four(scores, [at(0), at(1), at(2), at(3)], weights);
    }
}

/// `target += sum of factors[i] * rows[i]`, where `rows` holds at most four rows as long as
/// `target`. Four at once, so that `target` is loaded and stored once for four products.
fn add_four(target: &mut [f64], factors: [f64; 4], rows: &[f64]) {
    let width = target.len();
    if rows.len() < 4 * width {
        for (row, factor) in rows.chunks_exact(width).zip(factors) {
            target.iter_mut().zip(row).for_each(|(t, r)| *t += factor * r);
        }
        return;
    }
    let (first, rest) = rows.split_at(width);
    let (second, rest) = rest.split_at(width);
    let (third, fourth) = rest.split_at(width);
    let rows = first.iter().zip(second).zip(third).zip(fourth);
    for (target, (((a, b), c), d)) in target.iter_mut().zip(rows) {
        *target += factors[0] * a + factors[1] * b + factors[2] * c + factors[3] * d;
    }
}

/// Turns scores into probabilities minus one at the label; returns the cross-entropy in nats. A single score is that of
/// class 1, where class 0 has 0.
fn cross_entropy_residual(scores: &mut [f64], label: usize) -> f64 {
    if let [score] = scores {
        // exp of what is not positive cannot overflow.
        let small = (-score.abs()).exp();
        let loss = small.ln_1p() + score.max(0.0) - label as f64 * *score;
        *score = if *score > 0.0 { 1.0 } else { small } / (1.0 + small) - label as f64;
        return loss;
    }
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let at_label = scores[label];
    let mut total = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - highest).exp();
        total += *score;
    }
    scores.iter_mut().for_each(|score| *score /= total);
    scores[label] -= 1.0;
    total.ln() + highest - at_label
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn bad_input_is_an_error() {
        let config = LogisticRegressionConfig::default();
        let fit = |labels: &[usize], num_classes, config: &LogisticRegressionConfig| {
            LogisticRegression::fit(&[[1.0_f32], [2.0]], labels, num_classes, config)
        };
        assert!(fit(&[0, 1], 2, &config).is_ok());
        assert!(fit(&[0], 2, &config).is_err());
        assert!(fit(&[0, 2], 2, &config).is_err());
        assert!(fit(&[0, 0], 1, &config).is_err());
        assert!(fit(&[0, 1], 2, &LogisticRegressionConfig { c: 0.0, ..config }).is_err());
        assert!(LogisticRegression::fit(&[[f32::NAN]], &[0], 2, &config).is_err());
        assert!(LogisticRegression::fit::<[f32; 1]>(&[], &[], 2, &config).is_err());
        let fitted = fit(&[0, 1], 2, &config).unwrap();
        assert!(fitted.predict(&[[1.0, 2.0]]).is_err());
    }
}
