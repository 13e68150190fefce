//! The texts that the clustering tasks of MTEB version 2 are about: which of a data set's, with which labels.

use crate::Error;
use crate::data::mteb::LabelledSentence;
use crate::eval::numpy_generator::Generator;
use std::collections::BTreeMap;

/// Texts that some tasks keep.
const NUM_KEPT: usize = 2048;
/// The seed of MTEB's tasks.
const SEED: u32 = 42;

/// What a task does with its data before it draws the texts to embed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transform {
    /// All texts as they are.
    None,
    /// Without texts that are alone in their class.
    WithoutSingletons,
    /// A sample with each class in proportion; all of it is embedded.
    Stratified,
    /// Labels with a level before and one after a full stop; then a sample.
    Levels,
}

/// Whether MTEB scores the clustering task by the protocol of its second version.
pub(super) fn is_sampled(name: &str) -> bool {
    name.ends_with(".v2") || name.starts_with("ArXivHierarchicalClustering")
}

fn transform(name: &str) -> Option<Transform> {
    Some(match name {
        "BiorxivClusteringP2P.v2"
        | "BiorxivClusteringS2S.v2"
        | "MedrxivClusteringP2P.v2"
        | "MedrxivClusteringS2S.v2"
        | "TwentyNewsgroupsClustering.v2" => Transform::None,
        "RedditClusteringP2P.v2" | "StackExchangeClusteringP2P.v2" => Transform::WithoutSingletons,
        "RedditClustering.v2" | "StackExchangeClustering.v2" => Transform::Stratified,
        "ArXivHierarchicalClusteringP2P" | "ArXivHierarchicalClusteringS2S" => Transform::Levels,
        _ => return None,
    })
}

/// The texts of the task `name`, and whether all of them are embedded.
///
/// # Errors
/// When the task's way with its data is not known, or too few texts are left to sample from.
pub(super) fn transformed(name: &str, rows: Vec<LabelledSentence>) -> Result<(Vec<LabelledSentence>, bool), Error> {
    let wrong = |expected: &str, found: String| Error::Setting {
        field: format!("task {name}"),
        expected: expected.to_owned(),
        found,
    };
    let unknown = || wrong("a clustering task whose sample of texts is known", "another".into());
    Ok(match transform(name).ok_or_else(unknown)? {
        Transform::None => (rows, false),
        Transform::WithoutSingletons => (without_singletons(rows), false),
        Transform::Stratified if rows.len() <= NUM_KEPT => (rows, true),
        Transform::Stratified => {
            let kept = stratified(&rows.iter().map(|row| row.labels.concat()).collect::<Vec<_>>());
            let kept = kept.ok_or_else(|| wrong("two texts of every class or more", "a class of one".into()))?;
            (select(rows, &kept), true)
        }
        Transform::Levels if rows.len() <= NUM_KEPT => {
            return Err(wrong("more than 2,048 texts, of which so many are drawn", rows.len().to_string()));
        }
        Transform::Levels => {
            let mut order = Generator::seeded(SEED).permutation((0..rows.len()).collect());
            order.truncate(NUM_KEPT);
            let mut kept = select(rows, &order);
            for row in &mut kept {
                row.labels = row.labels.iter().flat_map(|label| label.split('.')).map(str::to_owned).collect();
            }
            (kept, false)
        }
    })
}

fn select(rows: Vec<LabelledSentence>, kept: &[usize]) -> Vec<LabelledSentence> {
    kept.iter().map(|row| rows[*row].clone()).collect()
}

fn without_singletons(rows: Vec<LabelledSentence>) -> Vec<LabelledSentence> {
    let mut counts: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *counts.entry(row.labels.clone()).or_default() += 1);
    rows.into_iter().filter(|row| counts[&row.labels] > 1).collect()
}

/// The test part of `Dataset.train_test_split(stratify_by_column)` of the `datasets` package; `None`: a class of one.
fn stratified(labels: &[String]) -> Option<Vec<usize>> {
    let mut classes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    labels.iter().enumerate().for_each(|(row, label)| classes.entry(label).or_default().push(row));
    if classes.values().any(|rows| rows.len() < 2) {
        return None;
    }
    let mut rng = Generator::seeded(SEED);
    let counts: Vec<usize> = classes.values().map(Vec::len).collect();
    let in_train = proportions(&counts, labels.len() - NUM_KEPT, &mut rng);
    let left: Vec<usize> = counts.iter().zip(&in_train).map(|(count, train)| count - train).collect();
    let in_test = proportions(&left, NUM_KEPT, &mut rng);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for ((rows, num_train), num_test) in classes.into_values().zip(in_train).zip(in_test) {
        let rows = rng.permutation(rows);
        train.extend_from_slice(&rows[..num_train]);
        test.extend_from_slice(&rows[num_train..num_train + num_test]);
    }
    // The other part is not used, but its draws come first.
    rng.permutation(train);
    Some(rng.permutation(test))
}

/// How many of `count` things come of each class, in proportion: those with the largest remainders get one more, among
/// equal ones by lot.
fn proportions(classes: &[usize], count: usize, rng: &mut Generator) -> Vec<usize> {
    let all = classes.iter().sum::<usize>() as f64;
    let shares: Vec<f64> = classes.iter().map(|class| (count * class) as f64 / all).collect();
    let mut counts: Vec<usize> = shares.iter().map(|share| *share as usize).collect();
    let mut missing = count - counts.iter().sum::<usize>();
    let mut remainders: Vec<f64> = shares.iter().map(|share| share.fract()).collect();
    remainders.sort_by(|a, b| b.total_cmp(a));
    remainders.dedup();
    for remainder in remainders {
        let equal: Vec<usize> = (0..shares.len()).filter(|class| shares[*class].fract() == remainder).collect();
        let more = equal.len().min(missing);
        if more == 0 {
            break;
        }
        for chosen in rng.choice_without_replacement(equal.len(), more) {
            counts[equal[chosen]] += 1;
        }
        missing -= more;
    }
    counts
}
