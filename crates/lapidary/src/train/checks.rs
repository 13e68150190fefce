//! What is checked before a run, so that it does not fail late or replace what is not its own.

use super::recipe::Recipe;
use crate::Error;
use crate::model::{BaseModel, GemConfig};
use layout::{Example, Method, Rng};
use rand::SeedableRng as _;
use std::path::Path;

/// A run replaces what an earlier run left, and nothing else.
pub(super) fn refuse_to_replace(dir: &Path) -> Result<(), Error> {
    let holds_something = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if holds_something && !GemConfig::is_gem(dir) {
        return Err(Error::File {
            path: dir.into(),
            reason: "expected nothing or the model of an earlier run, found something else; choose another directory"
                .into(),
        });
    }
    Ok(())
}

/// A row that the model cannot run is told before the run, not when the data first have one so long.
pub(super) fn check_longest_row(recipe: &Recipe, method: &dyn Method, base: &BaseModel) -> Result<(), Error> {
    let limit = base.decoder.config().max_position_embeddings;
    let example = Example { text: vec![0; recipe.budget.max_tokens.min(limit + 1)], ..Example::default() };
    // The forms of a row are drawn: enough draws to meet each.
    let mut rng = Rng::seed_from_u64(recipe.seed);
    for _ in 0..64 {
        let rows = method.train_plan(&example, &mut rng)?.rows;
        if let Some(position) = rows.iter().flat_map(|row| row.positions()).max().filter(|p| **p as usize >= limit) {
            return Err(Error::Setting {
                field: "budget.max_tokens".into(),
                expected: format!("rows of at most {limit} positions, the model's limit"),
                found: format!("{}, which makes a row of {}", recipe.budget.max_tokens, position + 1),
            });
        }
    }
    Ok(())
}
