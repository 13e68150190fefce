//! Summarization as MTEB scores it: how near a machine's summary of a text is to people's summaries of it, against how
//! relevant people found it.

use super::error::{EvalError, Result, check_lengths, check_vectors};
use super::metrics::{cosine_f64, spearman};

/// The summaries of one text.
#[derive(Debug)]
pub struct SummarySet<'a, E> {
    /// Vectors of people's summaries, `[D]` each, at least one.
    pub human: &'a [E],
    /// Vectors of machines' summaries, `[D]` each.
    pub machine: &'a [E],
    /// How relevant people found each of the latter.
    pub relevance: &'a [f64],
}

/// Means over the texts of Spearman's correlation, in -1..=1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SummarizationScore {
    /// By the cosine of each machine's summary with the nearest of people's.
    pub cosine_spearman: f64,
    /// By the inner product.
    pub dot_spearman: f64,
    /// Texts that were scored: those are left out whose summaries are all as relevant, or all as near, as one another.
    pub num_scored: usize,
}

/// Scores the summaries of texts.
///
/// # Errors
/// When vectors and scores of a text do not fit together, or no text can be scored.
pub fn score_summaries<E: AsRef<[f32]>>(sets: &[SummarySet<'_, E>]) -> Result<SummarizationScore> {
    let (mut cosine_sum, mut dot_sum, mut num_scored) = (0.0, 0.0, 0);
    for set in sets {
        check_lengths("machine summaries", set.machine.len(), "relevance", set.relevance.len())?;
        let expected = check_vectors("human summaries", set.human)?;
        let found = check_vectors("machine summaries", set.machine)?;
        if expected != found {
            return Err(EvalError::Width { what: "machine summaries", row: 0, expected, found });
        }
        let nearest = |similarity: &dyn Fn(&[f32], &[f32]) -> f64| -> Vec<f64> {
            let to_human = |machine: &E| {
                let all = set.human.iter().map(|human| similarity(machine.as_ref(), human.as_ref()));
                all.fold(f64::NEG_INFINITY, f64::max)
            };
            set.machine.iter().map(to_human).collect()
        };
        let by_cosine = nearest(&cosine_f64);
        let by_dot = nearest(&|a, b| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum());
        let constant = |values: &[f64]| values.iter().all(|value| *value == values[0]);
        if [set.relevance, &by_cosine, &by_dot].into_iter().any(constant) {
            continue;
        }
        cosine_sum += spearman(set.relevance, &by_cosine)?;
        dot_sum += spearman(set.relevance, &by_dot)?;
        num_scored += 1;
    }
    if num_scored == 0 {
        return Err(EvalError::TooFew { what: "texts with summaries that differ", expected: 1, found: 0 });
    }
    let mean = |sum: f64| sum / num_scored as f64;
    Ok(SummarizationScore { cosine_spearman: mean(cosine_sum), dot_spearman: mean(dot_sum), num_scored })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_without_an_order_are_left_out() {
        let (human, machine) = ([[1.0, 0.0f32]], [[1.0, 0.0f32], [1.0, 1.0], [0.0, 1.0]]);
        let set = |relevance| SummarySet { human: &human, machine: &machine, relevance };
        let score = score_summaries(&[set(&[3.0, 2.0, 1.0]), set(&[2.0, 2.0, 2.0])]).unwrap();
        assert_eq!((score.cosine_spearman, score.num_scored), (1.0, 1));
        // The inner products with the first two tie: ranks 2.5, 2.5 and 1 against 3, 2 and 1.
        assert!((score.dot_spearman - 0.75f64.sqrt()).abs() < 1e-12, "{score:?}");
    }

    #[test]
    fn bad_input_is_an_error() {
        let score = |human: &[Vec<f32>], machine: &[Vec<f32>], relevance: &[f64]| {
            score_summaries(&[SummarySet { human, machine, relevance }])
        };
        let (one, two) = (vec![vec![1.0f32]], vec![vec![1.0f32], vec![2.0]]);
        assert!(score(&one, &two, &[1.0, 2.0]).is_err(), "equal cosines");
        assert!(score(&one, &two, &[1.0]).is_err());
        assert!(score(&[], &two, &[1.0, 2.0]).is_err());
        assert!(score(&one, &[vec![1.0, 2.0], vec![2.0, 1.0]], &[1.0, 2.0]).is_err());
        assert!(score(&one, &[vec![f32::NAN], vec![2.0]], &[1.0, 2.0]).is_err());
    }
}
