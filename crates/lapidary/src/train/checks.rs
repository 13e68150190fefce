//! What is checked before a run, so that it does not fail late or replace what is not its own.

use super::recipe::{Recipe, Trained};
use super::teacher::Teachers;
use crate::Error;
use crate::model::{BaseModel, GemConfig, WeightFormat};
use layout::{Example, Layout, Loss, Method, Rng};
use rand::SeedableRng as _;
use std::path::Path;

/// A run replaces what an earlier run left, and nothing else.
pub(super) fn refuse_to_replace(dir: &Path) -> Result<(), Error> {
    let holds_something = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => dir.exists(),
    };
    if holds_something && !GemConfig::is_gem(dir) {
        return Err(Error::File {
            path: dir.into(),
            reason: "expected nothing or the model of an earlier run, found something else; choose another directory"
                .into(),
        });
    }
    Ok(())
}

/// Settings that no run of this method can have.
///
/// # Errors
/// Naming the setting.
pub(super) fn check_settings(recipe: &Recipe, method: &dyn Method, on_cpu: bool) -> Result<(), Error> {
    let wrong = |field: &str, expected: &str, found: &str| {
        let expected = format!("{expected} with method {}", method.name());
        Err(Error::Setting { field: field.into(), expected, found: found.into() })
    };
    if recipe.weights == WeightFormat::Int8 {
        return Err(Error::Setting {
            field: "weights".into(),
            expected: "\"stored\", \"bf16\" or \"f32\", because nothing is trained through eight bits".into(),
            found: "\"int8\"".into(),
        });
    }
    if recipe.prefix_weights == Some(WeightFormat::Int8) && !on_cpu {
        return Err(Error::Setting {
            field: "prefix_weights".into(),
            expected: "\"stored\", \"bf16\" or \"f32\" on a GPU".into(),
            found: "\"int8\"".into(),
        });
    }
    let wants_vectors = method.objective().terms.iter().any(|term| term.loss != Loss::NextToken);
    if !wants_vectors && !recipe.loss.teacher.methods.is_empty() {
        return wrong("loss.teacher.methods", "none, because no vector is trained,", "some");
    }
    if method.needs_positive() && recipe.data.positive_column.is_none() {
        return wrong("data.positive_column", "the column of the pairs' second texts", "none");
    }
    if recipe.trained == Trained::Full && method.needs_frozen_weights() {
        return wrong("trained", "\"lora\", because a part of its rows runs on the weights as they were,", "\"full\"");
    }
    Ok(())
}

/// A row that the model cannot run is told before the run, not when the data first have one so long.
///
/// # Errors
/// When a text of `budget.max_tokens` makes a longer row than the model allows, in training or for a teacher.
pub(super) fn check_longest_row(
    recipe: &Recipe,
    method: &dyn Method,
    teachers: Option<&Teachers>,
    base: &BaseModel,
) -> Result<(), Error> {
    /// The form of a row is drawn: one that comes up in a tenth of the draws is missed once in a thousand runs.
    const DRAWS: usize = 64;
    let limit = base.decoder.config().max_position_embeddings;
    let fits = |rows: &[Layout]| rows.iter().flat_map(Layout::positions).all(|position| (*position as usize) < limit);
    let text = vec![0; recipe.budget.max_tokens.min(limit + 1)];
    let mut all_fit = match teachers {
        Some(teachers) => fits(&teachers.rows_of(&text)?),
        None => true,
    };
    let pair = Example { text: text.clone(), positive: Some(text.clone()), negatives: vec![text.clone()] };
    let alone = (!method.needs_positive()).then(|| Example { text, ..Example::default() });
    let mut rng = Rng::seed_from_u64(recipe.seed);
    for example in alone.iter().chain([&pair]).cycle().take(DRAWS) {
        all_fit &= fits(&method.train_plan(example, &mut rng)?.rows);
    }
    if all_fit {
        return Ok(());
    }
    Err(Error::Setting {
        field: "budget.max_tokens".into(),
        expected: format!("texts whose rows have at most {limit} positions, the model's limit"),
        found: recipe.budget.max_tokens.to_string(),
    })
}
