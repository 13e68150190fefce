//! Clustering by the protocol of MTEB version 2 (arXiv 2502.13595, section 2.3.1): a share of the texts is embedded, and
//! samples of them, drawn with replacement, are clustered again and again, at each level of their labels.

use super::clustering::{MiniBatch, mini_batch_k_means, v_measure};
use super::error::{EvalError, Result, check_lengths, check_vectors};
use super::random::{python, python_choices, python_sample};
use rand_mt::Mt;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Share of the texts that is embedded, unless a task says otherwise.
pub const EMBEDDED_SHARE: f64 = 0.04;
/// Clusterings at each level.
const NUM_CLUSTERINGS: usize = 10;
/// Texts of each.
const SAMPLE_SIZE: usize = 16_384;
/// The seed of MTEB's tasks and of their k-means, which steps over so many texts.
const K_MEANS: MiniBatch = MiniBatch { batch_size: 512, seed: 42 };

/// The draws of one task, in their order.
#[derive(Debug)]
pub struct Bootstrap {
    rng: Mt,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { rng: python(K_MEANS.seed) }
    }
}

impl Bootstrap {
    /// The texts of `n` to embed: [`EMBEDDED_SHARE`] of them, in the order drawn.
    ///
    /// # Errors
    /// When that is none.
    pub fn texts(&mut self, n: usize) -> Result<Vec<usize>> {
        let count = (EMBEDDED_SHARE * n as f64) as usize;
        if count == 0 {
            // The least number of which the share is 1.
            return Err(EvalError::TooFew { what: "texts to cluster", expected: 25, found: n });
        }
        Ok(python_sample(n, count, &mut self.rng))
    }

    /// V-measures of all clusterings, the levels one after another, in 0..=1.
    ///
    /// `labels`: those of each text, from the widest class to the narrowest. Texts that lack a level form one class
    /// there, as they do in the `mteb` package where labels are texts.
    ///
    /// # Errors
    /// When there are no vectors, or they and the labels do not fit together, or a text has no label.
    pub fn v_measures<E: AsRef<[f32]> + Sync>(&mut self, vectors: &[E], labels: &[Vec<String>]) -> Result<Vec<f64>> {
        check_vectors("vectors", vectors)?;
        check_lengths("vectors", vectors.len(), "labels", labels.len())?;
        if labels.iter().any(Vec::is_empty) {
            return Err(EvalError::TooFew { what: "labels of a text", expected: 1, found: 0 });
        }
        let num_levels = labels.iter().map(Vec::len).max().unwrap_or(0);
        let mut scores = Vec::with_capacity(num_levels * NUM_CLUSTERINGS);
        for level in 0..num_levels {
            let (classes, num_classes) = classes(labels, level);
            let samples: Vec<Vec<usize>> =
                (0..NUM_CLUSTERINGS).map(|_| python_choices(vectors.len(), SAMPLE_SIZE, &mut self.rng)).collect();
            let of_level = samples.par_iter().map(|sample| {
                let of_sample: Vec<&[f32]> = sample.iter().map(|row| vectors[*row].as_ref()).collect();
                let expected: Vec<usize> = sample.iter().map(|row| classes[*row]).collect();
                v_measure(&expected, &mini_batch_k_means(&of_sample, num_classes, &K_MEANS)?)
            });
            scores.extend(of_level.collect::<Result<Vec<f64>>>()?);
        }
        Ok(scores)
    }
}

/// The class of each text at one level, and the number of classes.
fn classes(labels: &[Vec<String>], level: usize) -> (Vec<usize>, usize) {
    let of_level: Vec<Option<&String>> = labels.iter().map(|labels| labels.get(level)).collect();
    let mut numbers: BTreeMap<Option<&String>, usize> = of_level.iter().map(|label| (*label, 0)).collect();
    numbers.values_mut().enumerate().for_each(|(i, number)| *number = i);
    (of_level.iter().map(|label| numbers[label]).collect(), numbers.len())
}
