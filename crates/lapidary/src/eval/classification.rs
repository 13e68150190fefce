//! Classification by the protocol of MTEB version 1: a logistic regression on a few samples per
//! label, repeated, scored by its mean accuracy.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::error::{EvalError, Result, check_lengths, check_vectors};
use super::logistic_regression::{LogisticRegression, LogisticRegressionConfig, check_labels};
use super::metrics::accuracy;
use super::random::{seeded, shuffle};

/// How often and how much to draw; by default as MTEB does unless a task says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// Number of draws, each with its own classifier.
    pub num_experiments: usize,
    /// Samples of each label in a draw (all there are, if fewer).
    pub samples_per_label: usize,
    /// Seed of the shuffles.
    pub seed: u32,
}

impl Default for Protocol {
    fn default() -> Self {
        Self { num_experiments: 10, samples_per_label: 8, seed: 42 }
    }
}

/// The training samples of all experiments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draws {
    /// Rows of the training split that any experiment uses, ascending: only these need vectors.
    pub rows: Vec<usize>,
    /// For each experiment the drawn samples, as indices into `rows`.
    pub experiments: Vec<Vec<usize>>,
}

/// Draws the training samples of each experiment.
///
/// As `_undersample_data` of the `mteb` package (2.26): one list of indices is shuffled again and
/// again, each time by NumPy's generator newly seeded, and each experiment takes the first samples
/// of each label in the new order.
///
/// # Errors
/// If there are no labels, or a number of the protocol is zero.
pub fn draw_samples(labels: &[usize], protocol: &Protocol) -> Result<Draws> {
    for (setting, value) in
        [("num_experiments", protocol.num_experiments), ("samples_per_label", protocol.samples_per_label)]
    {
        if value == 0 {
            return Err(EvalError::Setting { setting, found: value.to_string(), expected: "at least 1" });
        }
    }
    if labels.is_empty() {
        return Err(EvalError::TooFew { what: "training labels", expected: 1, found: 0 });
    }
    let mut order: Vec<usize> = (0..labels.len()).collect();
    let mut drawn = Vec::with_capacity(protocol.num_experiments.min(1024));
    for _ in 0..protocol.num_experiments {
        shuffle(&mut order, &mut seeded(protocol.seed));
        drawn.push(first_of_each_label(&order, labels, protocol.samples_per_label));
    }
    let rows: BTreeSet<usize> = drawn.iter().flatten().copied().collect();
    let rows: Vec<usize> = rows.into_iter().collect();
    let index = |row: usize| rows.binary_search(&row).expect("the union holds every drawn row");
    let experiments = drawn.into_iter().map(|sample| sample.into_iter().map(index).collect()).collect();
    Ok(Draws { rows, experiments })
}

/// Vectors and labels of one split.
#[derive(Debug)]
pub struct Labelled<'a, E> {
    /// `[D]` each.
    pub vectors: &'a [E],
    /// The class of each vector, in `0..num_classes`.
    pub labels: &'a [usize],
}

/// Mean accuracy of the experiments, and each of them, times 100.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassificationScore {
    /// The score MTEB reports for most tasks.
    pub accuracy: f64,
    /// Accuracy of each experiment.
    pub per_experiment: Vec<f64>,
}

/// Fits a classifier to each draw and measures it on the test split.
///
/// `train` holds the vectors and labels of the training split at `draws.rows`, in that order.
///
/// # Errors
/// If vectors and labels do not fit together (ragged, not finite, too few, out of range), or a
/// draw points outside `train`.
pub fn score_classification<E: AsRef<[f32]> + Sync>(
    train: &Labelled<'_, E>,
    test: &Labelled<'_, E>,
    draws: &Draws,
    config: &LogisticRegressionConfig,
) -> Result<ClassificationScore> {
    check_vectors("training vectors", train.vectors)?;
    check_lengths("drawn rows", draws.rows.len(), "training vectors", train.vectors.len())?;
    check_lengths("training vectors", train.vectors.len(), "training labels", train.labels.len())?;
    check_lengths("test vectors", test.vectors.len(), "test labels", test.labels.len())?;
    let classes: BTreeSet<usize> = train.labels.iter().copied().collect();
    let classes: Vec<usize> = classes.into_iter().collect();
    let per_experiment = draws
        .experiments
        .par_iter()
        .map(|sample| run_experiment(train, test, sample, &classes, config))
        .collect::<Result<Vec<f64>>>()?;
    if per_experiment.is_empty() {
        return Err(EvalError::TooFew { what: "experiments", expected: 1, found: 0 });
    }
    Ok(ClassificationScore {
        accuracy: per_experiment.iter().sum::<f64>() / per_experiment.len() as f64,
        per_experiment,
    })
}

fn first_of_each_label(order: &[usize], labels: &[usize], samples_per_label: usize) -> Vec<usize> {
    let mut num_drawn = std::collections::HashMap::new();
    let mut sample = Vec::new();
    for &row in order {
        let count = num_drawn.entry(labels[row]).or_insert(0_usize);
        if *count < samples_per_label {
            *count += 1;
            sample.push(row);
        }
    }
    sample
}

/// Accuracy x 100 of a classifier fitted to one sample. `classes` are the labels that occur in
/// training, ascending; a test label outside them is simply never predicted.
fn run_experiment<E: AsRef<[f32]>>(
    train: &Labelled<'_, E>,
    test: &Labelled<'_, E>,
    sample: &[usize],
    classes: &[usize],
    config: &LogisticRegressionConfig,
) -> Result<f64> {
    check_labels("draws", sample, train.vectors.len())?;
    let vectors: Vec<&[f32]> = sample.iter().map(|&index| train.vectors[index].as_ref()).collect();
    let position = |label: usize| classes.binary_search(&label).expect("classes hold every training label");
    let labels: Vec<usize> = sample.iter().map(|&index| position(train.labels[index])).collect();
    let fitted = LogisticRegression::fit(&vectors, &labels, classes.len(), config)?;
    let predicted: Vec<usize> = fitted.predict(test.vectors)?.into_iter().map(|class| classes[class]).collect();
    Ok(100.0 * accuracy(&predicted, test.labels)?)
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn draws_hold_the_asked_number_of_each_label() {
        let labels: Vec<usize> = (0..100).map(|row| row % 5).chain([7, 7]).collect();
        let draws = draw_samples(&labels, &Protocol::default()).unwrap();
        assert_eq!(draws.experiments.len(), 10);
        for sample in &draws.experiments {
            for (label, expected) in [(0, 8), (1, 8), (2, 8), (3, 8), (4, 8), (7, 2)] {
                let found = sample.iter().filter(|&&i| labels[draws.rows[i]] == label).count();
                assert_eq!(found, expected, "label {label}");
            }
        }
        assert_ne!(draws.experiments[0], draws.experiments[1]);
        assert!(draws.rows.is_sorted());
    }

    #[test]
    fn separable_labels_are_all_found() {
        let vectors: Vec<[f32; 2]> =
            (0..40).map(|row| if row % 2 == 0 { [9.0, row as f32] } else { [-9.0, row as f32] }).collect();
        let labels: Vec<usize> = (0..40).map(|row| 3 + 4 * (row % 2)).collect();
        let draws = draw_samples(&labels, &Protocol::default()).unwrap();
        let vectors_drawn: Vec<[f32; 2]> = draws.rows.iter().map(|&row| vectors[row]).collect();
        let labels_drawn: Vec<usize> = draws.rows.iter().map(|&row| labels[row]).collect();
        let train = Labelled { vectors: &vectors_drawn, labels: &labels_drawn };
        let test = Labelled { vectors: &vectors, labels: &labels };
        let config = LogisticRegressionConfig::default();
        let score = score_classification(&train, &test, &draws, &config).unwrap();
        assert_eq!(score.accuracy, 100.0);
        assert_eq!(score.per_experiment, [100.0; 10]);
        // One vector too few for the drawn rows.
        let short = Labelled { vectors: &vectors_drawn[1..], labels: &labels_drawn[1..] };
        assert!(score_classification(&short, &test, &draws, &config).is_err());
    }

    #[test]
    fn empty_input_is_an_error() {
        assert!(draw_samples(&[], &Protocol::default()).is_err());
        let none = Protocol { num_experiments: 0, ..Protocol::default() };
        assert!(draw_samples(&[0, 1], &none).is_err());
    }
}
