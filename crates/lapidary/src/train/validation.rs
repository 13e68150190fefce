//! The pairs that a run is validated on.

use super::recipe::ValidationRecipe;
use crate::Error;
use crate::data::sts::StsPairs;
use std::path::Path;

/// The pairs of the recipe's file, evenly spaced where it asks for fewer than there are; none where it has no file.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn validation_pairs(validation: &ValidationRecipe) -> Result<Option<StsPairs>, Error> {
    let Some(path) = &validation.sts else { return Ok(None) };
    let mut pairs = StsPairs::load(Path::new(path))?;
    let (wanted, all) = (validation.pairs, pairs.pairs.len());
    if wanted > 0 && wanted < all {
        // Evenly spaced: such files hold one source of sentences after the other.
        let mut kept = (0..wanted).map(|i| i * all / wanted).peekable();
        let mut at = 0;
        pairs.pairs.retain(|_| {
            at += 1;
            kept.next_if_eq(&(at - 1)).is_some()
        });
    }
    Ok(Some(pairs))
}
