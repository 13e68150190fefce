//! Clustering by the protocol of MTEB: mini-batch k-means on the vectors of each set, scored by the V-measure.
//!
//! [`mini_batch_k_means`] takes the steps of scikit-learn's `MiniBatchKMeans` (Sculley, WWW 2010; k-means++ by Arthur
//! and Vassilvitskii, SODA 2007) with its default settings and numpy's generator, so that a seed gives the same
//! clusters up to ties in the last digits.

use super::error::{EvalError, Result, check_lengths, check_vectors};
use super::random::{choice, choice_without_replacement, integers, seeded, uniform};
use rand_mt::Mt;
use rayon::prelude::*;

/// What MTEB asks of the k-means.
const K_MEANS: MiniBatch = MiniBatch { batch_size: 500, seed: 42 };
/// Passes over the set, at most.
const MAX_PASSES: usize = 100;
/// Steps without a lower smoothed inertia after which to stop.
const MAX_NO_IMPROVEMENT: usize = 10;
/// Clusters with fewer than this share of the largest cluster's texts start anew elsewhere.
const REASSIGNMENT_RATIO: f64 = 0.01;

/// Settings of the k-means that tasks differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MiniBatch {
    /// Texts of a step.
    pub batch_size: usize,
    /// Seed of numpy's generator.
    pub seed: u32,
}

/// Texts of one set: what cluster each belongs to, and the vectors.
#[derive(Debug)]
pub struct ClusteringSet<'a, E> {
    /// `[D]` each.
    pub vectors: &'a [E],
    /// The class of each vector, any numbers.
    pub labels: &'a [usize],
}

/// Mean V-measure of the sets, times 100.
///
/// # Errors
/// When there are no sets, or vectors and labels of one do not fit together.
pub fn score_clustering<E: AsRef<[f32]> + Sync>(sets: &[ClusteringSet<'_, E>]) -> Result<f64> {
    if sets.is_empty() {
        return Err(EvalError::TooFew { what: "clustering sets", expected: 1, found: 0 });
    }
    let scores = sets.par_iter().map(|set| {
        check_lengths("vectors", set.vectors.len(), "labels", set.labels.len())?;
        let mut classes = set.labels.to_vec();
        classes.sort_unstable();
        classes.dedup();
        if classes.len() < 2 {
            return Ok(1.0);
        }
        v_measure(set.labels, &mini_batch_k_means(set.vectors, classes.len(), &K_MEANS)?)
    });
    Ok(100.0 * scores.collect::<Result<Vec<f64>>>()?.iter().sum::<f64>() / sets.len() as f64)
}

/// V-measure of two labellings, in 0..=1 (Rosenberg and Hirschberg, EMNLP 2007): the harmonic mean of homogeneity and
/// completeness.
///
/// # Errors
/// When the lengths differ or there is no entry.
pub fn v_measure(labels: &[usize], clusters: &[usize]) -> Result<f64> {
    check_lengths("labels", labels.len(), "clusters", clusters.len())?;
    if labels.is_empty() {
        return Err(EvalError::TooFew { what: "labels", expected: 1, found: 0 });
    }
    let n = labels.len() as f64;
    let count = |items: &mut dyn Iterator<Item = (usize, usize)>| {
        let mut counts = std::collections::BTreeMap::new();
        items.for_each(|item| *counts.entry(item).or_insert(0.0) += 1.0);
        counts
    };
    let of_label = count(&mut labels.iter().map(|label| (*label, 0)));
    let of_cluster = count(&mut clusters.iter().map(|cluster| (0, *cluster)));
    let of_both = count(&mut labels.iter().copied().zip(clusters.iter().copied()));
    let entropy =
        |counts: &std::collections::BTreeMap<_, f64>| -counts.values().map(|c| c / n * (c / n).ln()).sum::<f64>();
    let mutual: f64 = of_both
        .iter()
        .map(|((label, cluster), both)| {
            both / n * (both * n / (of_label[&(*label, 0)] * of_cluster[&(0, *cluster)])).ln()
        })
        .sum();
    let share = |entropy: f64| if entropy == 0.0 { 1.0 } else { mutual / entropy };
    let (homogeneity, completeness) = (share(entropy(&of_label)), share(entropy(&of_cluster)));
    let sum = homogeneity + completeness;
    Ok(if sum == 0.0 { 0.0 } else { 2.0 * homogeneity * completeness / sum })
}

/// The cluster of each vector.
///
/// # Shapes
/// `vectors`: `[D]` each; the result: one number in `0..num_clusters` each.
///
/// # Errors
/// When the vectors are ragged or not finite, or fewer than the clusters, or a step has no texts.
pub fn mini_batch_k_means<E: AsRef<[f32]>>(
    vectors: &[E],
    num_clusters: usize,
    settings: &MiniBatch,
) -> Result<Vec<usize>> {
    if settings.batch_size == 0 {
        return Err(EvalError::Setting { setting: "batch_size", found: "0".into(), expected: "at least 1" });
    }
    let width = check_vectors("vectors", vectors)?;
    let n = vectors.len();
    if num_clusters == 0 || n < num_clusters {
        return Err(EvalError::TooFew { what: "vectors", expected: num_clusters.max(1), found: n });
    }
    let vectors: Vec<&[f32]> = vectors.iter().map(AsRef::as_ref).collect();
    let mut rng = seeded(settings.seed);
    let batch = settings.batch_size.min(n);
    // The size of the sample that centres are drawn from, and of another on which several draws would be compared:
    // there is one draw, but its numbers are taken all the same.
    let init = if 3 * batch < num_clusters { 3 * num_clusters } else { 3 * batch }.min(n);
    integers(n, init, &mut rng);
    let mut fit = Fit::new(&vectors, num_clusters, width, init, &mut rng);
    let mut progress = Convergence::default();
    for step in 0..MAX_PASSES * n / batch {
        let rows: Vec<usize> = (0..batch).map(|_| choice(n, &mut rng)).collect();
        let inertia = fit.step(&vectors, &rows, &mut rng) / batch as f64;
        if step > 0 && progress.is_over(inertia, (batch as f64 * 2.0 / (n as f64 + 1.0)).min(1.0)) {
            break;
        }
    }
    Ok(vectors.iter().map(|vector| fit.nearest(vector).0).collect())
}

/// Watches the smoothed inertia.
#[derive(Default)]
struct Convergence {
    smoothed: Option<f64>,
    least: Option<f64>,
    no_improvement: usize,
}

impl Convergence {
    fn is_over(&mut self, inertia: f64, weight: f64) -> bool {
        let smoothed = self.smoothed.map_or(inertia, |old| old * (1.0 - weight) + inertia * weight);
        self.smoothed = Some(smoothed);
        if self.least.is_none_or(|least| smoothed < least) {
            (self.least, self.no_improvement) = (Some(smoothed), 0);
        } else {
            self.no_improvement += 1;
        }
        self.no_improvement >= MAX_NO_IMPROVEMENT
    }
}

/// Centres, and how many texts each has taken in.
struct Fit {
    centres: Vec<Vec<f32>>,
    counts: Vec<f64>,
    since_reassignment: usize,
}

/// In lanes, so that it vectorises.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let square = |a: &f32, b: &f32| (f64::from(*a) - f64::from(*b)).powi(2);
    let mut lanes = [0f64; 8];
    for (a, b) in a.iter().zip(b) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += square(a, b));
    }
    lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| square(a, b)).sum::<f64>()
}

impl Fit {
    /// Draws the centres by greedy k-means++ from `init` of the vectors.
    fn new(vectors: &[&[f32]], num_clusters: usize, width: usize, init: usize, rng: &mut Mt) -> Self {
        let drawn: Vec<&[f32]>;
        let sample = if init < vectors.len() {
            drawn = integers(vectors.len(), init, rng).into_iter().map(|row| vectors[row]).collect();
            &drawn
        } else {
            vectors
        };
        let trials = 2 + (num_clusters as f64).ln() as usize;
        let mut centres: Vec<Vec<f32>> = Vec::with_capacity(num_clusters);
        let first = choice(sample.len(), rng);
        centres.push(sample[first].to_vec());
        let distances_to = |centre: &[f32]| -> Vec<f32> {
            sample.iter().map(|vector| squared_distance(vector, centre) as f32).collect()
        };
        let mut closest = distances_to(sample[first]);
        while centres.len() < num_clusters {
            let mut sum = 0f32;
            let cumulative: Vec<f32> = closest
                .iter()
                .map(|d| {
                    sum += d;
                    sum
                })
                .collect();
            let potential: f64 = closest.iter().map(|d| f64::from(*d)).sum();
            let targets: Vec<f64> = (0..trials).map(|_| uniform(rng) * f64::from(potential as f32)).collect();
            let candidates = targets.into_iter().map(|target| {
                let row = cumulative.partition_point(|sum| f64::from(*sum) < target).min(sample.len() - 1);
                let distances = distances_to(sample[row]);
                let closer: Vec<f32> = distances.iter().zip(&closest).map(|(new, old)| new.min(*old)).collect();
                let potential: f64 = closer.iter().map(|d| f64::from(*d)).sum();
                (potential as f32, row, closer)
            });
            // The first of equal candidates, as numpy's argmin.
            let best = candidates.reduce(|best, next| if next.0 < best.0 { next } else { best });
            let (_, row, closer) = best.expect("there are at least two trials");
            centres.push(sample[row].to_vec());
            closest = closer;
        }
        debug_assert!(centres.iter().all(|centre| centre.len() == width));
        Self { centres, counts: vec![0.0; num_clusters], since_reassignment: 0 }
    }

    /// The nearest centre, the first of equals, and the squared distance to it.
    fn nearest(&self, vector: &[f32]) -> (usize, f64) {
        let distances = self.centres.iter().map(|centre| squared_distance(vector, centre)).enumerate();
        distances.reduce(|best, next| if next.1 < best.1 { next } else { best }).expect("there is a centre")
    }

    /// Moves the centres by one batch; its inertia before the move.
    fn step(&mut self, vectors: &[&[f32]], rows: &[usize], rng: &mut Mt) -> f64 {
        self.since_reassignment += rows.len();
        let reassigns = self.counts.contains(&0.0) || self.since_reassignment >= 10 * self.centres.len();
        let nearest: Vec<(usize, f64)> = rows.iter().map(|row| self.nearest(vectors[*row])).collect();
        let mut sums: Vec<Option<(Vec<f32>, f64)>> = vec![None; self.centres.len()];
        for (row, (cluster, _)) in rows.iter().zip(&nearest) {
            let count = self.counts[*cluster] as f32;
            let (sum, added) =
                sums[*cluster].get_or_insert_with(|| (self.centres[*cluster].iter().map(|x| x * count).collect(), 0.0));
            sum.iter_mut().zip(vectors[*row]).for_each(|(sum, x)| *sum += x);
            *added += 1.0;
        }
        for (cluster, sum) in sums.into_iter().enumerate() {
            let Some((sum, added)) = sum else { continue };
            self.counts[cluster] += added;
            let scale = 1.0 / self.counts[cluster] as f32;
            self.centres[cluster] = sum.into_iter().map(|x| x * scale).collect();
        }
        if reassigns {
            self.since_reassignment = 0;
            self.reassign(vectors, rows, rng);
        }
        nearest.iter().map(|(_, distance)| distance).sum()
    }

    /// Moves the centres of small clusters onto texts of the batch.
    fn reassign(&mut self, vectors: &[&[f32]], rows: &[usize], rng: &mut Mt) {
        let largest = self.counts.iter().copied().fold(0.0, f64::max);
        let mut small: Vec<usize> =
            (0..self.counts.len()).filter(|cluster| self.counts[*cluster] < REASSIGNMENT_RATIO * largest).collect();
        let most = rows.len() / 2;
        if small.len() > most {
            let mut by_count: Vec<usize> = (0..self.counts.len()).collect();
            by_count.sort_by(|a, b| self.counts[*a].total_cmp(&self.counts[*b]));
            small.retain(|cluster| by_count[..most].contains(cluster));
        }
        if small.is_empty() {
            return;
        }
        let texts = choice_without_replacement(rows.len(), small.len(), rng);
        let least =
            (0..self.counts.len()).filter(|cluster| !small.contains(cluster)).map(|cluster| self.counts[cluster]);
        let least = least.fold(f64::INFINITY, f64::min);
        for (cluster, text) in small.into_iter().zip(texts) {
            self.centres[cluster] = vectors[rows[text]].to_vec();
            self.counts[cluster] = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_far_apart_are_found() {
        let vectors: Vec<[f32; 2]> =
            (0..90).map(|i| [(i % 3) as f32 * 100.0 + (i as f32 * 0.7).sin(), (i as f32).cos()]).collect();
        let labels: Vec<usize> = (0..90).map(|i| i % 3).collect();
        let score = score_clustering(&[ClusteringSet { vectors: &vectors, labels: &labels }]).unwrap();
        assert!((score - 100.0).abs() < 1e-9, "{score}");
    }

    #[test]
    fn v_measure_of_known_cases() {
        assert_eq!(v_measure(&[0, 0, 1, 1], &[5, 5, 2, 2]), Ok(1.0));
        assert_eq!(v_measure(&[0, 0, 1, 1], &[1, 1, 1, 1]), Ok(0.0));
        // By hand: homogeneity 1, completeness ln 2 / (1.5 ln 2).
        assert!((v_measure(&[0, 0, 1, 1], &[0, 0, 1, 2]).unwrap() - 0.8).abs() < 1e-12);
    }

    #[test]
    fn bad_input_is_an_error() {
        let none: [ClusteringSet<'_, [f32; 1]>; 0] = [];
        assert!(score_clustering(&none).is_err());
        assert!(score_clustering(&[ClusteringSet { vectors: &[[1f32]], labels: &[0, 1] }]).is_err());
        assert!(mini_batch_k_means(&[[f32::NAN], [1.0]], 2, &K_MEANS).is_err());
        assert!(mini_batch_k_means(&[[1f32]], 2, &K_MEANS).is_err());
        assert!(mini_batch_k_means(&[[1f32], [2.0]], 2, &MiniBatch { batch_size: 0, seed: 0 }).is_err());
    }
}
