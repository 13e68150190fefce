//! How much of a text another one repeats: tokens and characters in common.

use super::error::{EvalError, Result};
use std::collections::HashMap;
use std::hash::Hash;

/// Longest character n-gram of chrF.
const MAX_ORDER: usize = 6;
/// Weight of recall against precision in chrF, squared.
const BETA_SQUARED: f64 = 4.0;

fn counts<T: Hash + Eq>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    items.for_each(|item| *counts.entry(item).or_insert(0) += 1);
    counts
}

fn num_common<T: Hash + Eq>(a: &HashMap<T, usize>, b: &HashMap<T, usize>) -> usize {
    a.iter().map(|(item, count)| (*count).min(b.get(item).copied().unwrap_or(0))).sum()
}

/// Harmonic mean of the shares of tokens in common, whatever their order, in 0..=1 (as SQuAD counts words).
#[must_use]
pub fn token_f1<T: Hash + Eq>(found: &[T], original: &[T]) -> f64 {
    let common = num_common(&counts(found.iter()), &counts(original.iter())) as f64;
    if found.is_empty() || original.is_empty() { 0.0 } else { 2.0 * common / (found.len() + original.len()) as f64 }
}

/// chrF of (found, original) pairs together, in 0..=1: F with doubled weight of recall over character n-grams of up to
/// six, blanks left out, as sacreBLEU's `corpus_chrf` (Popović, WMT 2015).
///
/// # Errors
/// When there is no pair.
pub fn chrf(pairs: &[(&str, &str)]) -> Result<f64> {
    if pairs.is_empty() {
        return Err(EvalError::TooFew { what: "pairs of texts", expected: 1, found: 0 });
    }
    let (mut precisions, mut recalls, mut orders) = (0.0, 0.0, 0.0);
    for order in 1..=MAX_ORDER {
        let (mut num_found, mut num_original, mut num_both) = (0, 0, 0);
        for (found, original) in pairs {
            let n_grams = |text: &str| -> HashMap<String, usize> {
                let characters: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
                counts(characters.windows(order).map(|window| window.iter().collect()))
            };
            let (found, original) = (n_grams(found), n_grams(original));
            num_found += found.values().sum::<usize>();
            num_original += original.values().sum::<usize>();
            num_both += num_common(&found, &original);
        }
        if num_found > 0 && num_original > 0 {
            precisions += num_both as f64 / num_found as f64;
            recalls += num_both as f64 / num_original as f64;
            orders += 1.0;
        }
    }
    if orders == 0.0 || precisions + recalls == 0.0 {
        return Ok(0.0);
    }
    let (precision, recall) = (precisions / orders, recalls / orders);
    Ok((1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_common() {
        assert_eq!(token_f1(&[1, 2, 2, 3], &[2, 2, 2, 4]), 0.5);
        assert_eq!(token_f1::<u32>(&[], &[1]), 0.0);
    }

    #[test]
    fn equal_and_disjoint_texts() {
        assert_eq!(chrf(&[("a text", "a text")]), Ok(1.0));
        assert_eq!(chrf(&[("abc", "xyz")]), Ok(0.0));
        assert_eq!(chrf(&[("", "xyz")]), Ok(0.0));
        assert!(chrf(&[]).is_err());
    }
}
