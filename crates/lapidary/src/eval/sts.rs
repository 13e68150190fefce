//! Semantic textual similarity: Spearman's correlation of cosines with the scores people gave.

use std::collections::HashMap;

use super::error::{EvalError, Result, check_vectors};
use super::metrics::{cosine_f64, spearman};

/// Two texts, as indices into the unique texts, and how similar people found them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StsPair {
    /// Index of the first text.
    pub first: usize,
    /// Index of the second text.
    pub second: usize,
    /// Score given by people; any scale, only its order counts.
    pub score: f64,
}

/// The different texts of a set in order of appearance, and its pairs as indices into them.
///
/// Many sets repeat sentences; each needs its embedding only once.
pub fn unique_texts<'a>(rows: impl IntoIterator<Item = (&'a str, &'a str, f64)>) -> (Vec<&'a str>, Vec<StsPair>) {
    let mut texts = Vec::new();
    let mut index_of = HashMap::new();
    let mut index = |text: &'a str| {
        *index_of.entry(text).or_insert_with(|| {
            texts.push(text);
            texts.len() - 1
        })
    };
    let pairs = rows
        .into_iter()
        .map(|(first, second, score)| StsPair { first: index(first), second: index(second), score })
        .collect();
    (texts, pairs)
}

/// Spearman's correlation between the cosines of the pairs and their scores, times 100.
///
/// # Shapes
/// `embeddings`: one `[D]` for each unique text.
///
/// # Errors
/// If a vector has another width or a non-finite value, a pair points outside the texts, or the
/// correlation is undefined (see [`spearman`]).
pub fn score_sts<E: AsRef<[f32]>>(embeddings: &[E], pairs: &[StsPair]) -> Result<f64> {
    check_vectors("embeddings", embeddings)?;
    let count = embeddings.len();
    let mut cosines = Vec::with_capacity(pairs.len());
    for (entry, pair) in pairs.iter().enumerate() {
        for index in [pair.first, pair.second] {
            if index >= count {
                return Err(EvalError::OutOfRange { what: "pairs", entry, index, count });
            }
        }
        cosines.push(cosine_f64(embeddings[pair.first].as_ref(), embeddings[pair.second].as_ref()));
    }
    let scores: Vec<f64> = pairs.iter().map(|pair| pair.score).collect();
    Ok(100.0 * spearman(&cosines, &scores)?)
}

/// Embeds the different texts of a set with `embed` and scores its pairs: Spearman times 100.
///
/// # Errors
/// When `embed` fails, or as [`score_sts`].
pub fn score_pairs(
    set: &crate::data::sts::StsPairs,
    embed: impl FnOnce(&[&str]) -> std::result::Result<Vec<Vec<f32>>, crate::Error>,
) -> std::result::Result<f64, crate::Error> {
    let rows = set.pairs.iter().map(|p| (p.sentence1.as_str(), p.sentence2.as_str(), p.score));
    let (texts, pairs) = unique_texts(rows);
    Ok(score_sts(&embed(&texts)?, &pairs)?)
}

#[cfg(test)]
mod tests {

    use super::*;

    const PLANE: [[f32; 2]; 4] = [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]];

    fn pair(second: usize, score: f64) -> StsPair {
        StsPair { first: 0, second, score }
    }

    #[test]
    fn order_of_angles_is_the_score() {
        let agreeing = [pair(0, 5.0), pair(1, 3.0), pair(2, 2.0), pair(3, 0.0)];
        assert_eq!(score_sts(&PLANE, &agreeing), Ok(100.0));
        // One swap of neighbours among four: 1 - 6 * 2 / (4 * 15) = 0.8.
        let swapped = [pair(0, 5.0), pair(1, 2.0), pair(2, 3.0), pair(3, 0.0)];
        assert!((score_sts(&PLANE, &swapped).unwrap() - 80.0).abs() < 1e-12);
    }

    #[test]
    fn each_text_stands_once() {
        let (texts, pairs) = unique_texts([("a", "b", 1.0), ("b", "a", 2.0), ("c", "c", 3.0)]);
        assert_eq!(texts, ["a", "b", "c"]);
        let indices: Vec<_> = pairs.iter().map(|pair| (pair.first, pair.second)).collect();
        assert_eq!(indices, [(0, 1), (1, 0), (2, 2)]);
    }

    #[test]
    fn bad_input_is_an_error() {
        assert!(score_sts::<[f32; 2]>(&[], &[]).is_err());
        assert!(matches!(
            score_sts(&PLANE, &[pair(4, 1.0), pair(1, 0.0)]),
            Err(EvalError::OutOfRange { index: 4, .. })
        ));
        assert!(matches!(score_sts(&[[f32::NAN, 1.0]], &[pair(0, 1.0)]), Err(EvalError::NotFinite { index: 0, .. })));
        assert!(matches!(
            score_sts(&[vec![1.0], vec![1.0, 2.0]], &[pair(0, 1.0)]),
            Err(EvalError::Width { row: 1, .. })
        ));
    }
}
