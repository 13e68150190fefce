//! What a run costs the model as a language model, measured while it trains, and the budget that ends it.

use crate::Error;
use crate::data::tasks::{load_multiple_choice, load_texts, split_file};
use crate::eval::damage::drift;
use crate::eval::language::LanguageModel;
use crate::eval::task::TaskKind;
use crate::eval::task::language::{LanguageOptions, score_language_task, spread};
use crate::model::{BaseModel, Decoder};
use layout::TokenId;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Tokens of the base model's greedy reply that belong to each chat.
const REPLY_TOKENS: usize = 32;

/// What a run may cost; measured at every validation, and the run ends at the first that finds more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DamageRecipe {
    /// Mean KL(base || model) of the next-token distributions over the chats, nats; none: no limit.
    pub max_kl: Option<f64>,
    /// Points of MMLU accuracy that may be lost; none: MMLU is not asked.
    pub max_mmlu_drop: Option<f64>,
    /// Measure even where the scope of the adapter promises an unchanged chat, and the damage is therefore zero.
    pub always: bool,
    /// A directory with MMLU's splits `test` and `dev`.
    pub mmlu: String,
    /// MMLU questions, spread over the subjects; 0: all.
    pub num_questions: usize,
    /// What the user says in the chats: a file with a column `text`; none: MMLU's questions.
    pub chats: Option<String>,
    /// Number of chats, spread over the file.
    pub num_chats: usize,
}

impl Default for DamageRecipe {
    fn default() -> Self {
        Self {
            max_kl: None,
            max_mmlu_drop: None,
            always: false,
            mmlu: "data/MMLU".into(),
            num_questions: 57,
            chats: None,
            num_chats: 8,
        }
    }
}

impl DamageRecipe {
    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.max_kl.is_some() || self.max_mmlu_drop.is_some()
    }

    /// Checks the values; `every_steps` is the number of steps between validations.
    pub(super) fn validate(&self, every_steps: u64) -> Result<(), Error> {
        let wrong = |field: &str, expected: &str, found: String| {
            Err(Error::Setting { field: field.into(), expected: expected.into(), found })
        };
        for (field, limit) in [("damage.max_kl", self.max_kl), ("damage.max_mmlu_drop", self.max_mmlu_drop)] {
            if let Some(limit) = limit.filter(|limit| !(limit.is_finite() && *limit >= 0.0)) {
                return wrong(field, "a number, at least 0", limit.to_string());
            }
        }
        if self.num_chats == 0 {
            return wrong("damage.num_chats", "at least 1", "0".into());
        }
        if self.always && !self.is_limited() {
            return wrong("damage.always", "a limit beside it (max_kl or max_mmlu_drop)", "none".into());
        }
        if self.is_limited() && every_steps == 0 {
            let expected = "the steps from one measurement of the damage to the next, at least 1";
            return wrong("validation.every_steps", expected, "0".into());
        }
        Ok(())
    }
}

/// What a run has cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Damage {
    /// Mean over the positions of the chats of KL(base || model), nats.
    pub mean_kl: f64,
    /// The largest of them, nats.
    pub max_kl: f64,
    /// Points of MMLU accuracy lost; negative where some were gained; none where it was not asked.
    pub mmlu_drop: Option<f64>,
}

impl Damage {
    /// What is beyond the limits, in words; a figure that has a limit and was not measured is.
    pub fn beyond(&self, recipe: &DamageRecipe) -> Option<String> {
        let mut found = Vec::new();
        // False for what is no number.
        let is_within = |value: f64, limit: f64| value <= limit;
        if let Some(limit) = recipe.max_kl
            && !is_within(self.mean_kl, limit)
        {
            found.push(format!("mean KL(base || model) is {:.6} nats, allowed {limit}", self.mean_kl));
        }
        if let Some(limit) = recipe.max_mmlu_drop
            && !self.mmlu_drop.is_some_and(|drop| is_within(drop, limit))
        {
            let lost = self.mmlu_drop.map_or("an unknown number of".into(), |drop| format!("{drop:.2}"));
            found.push(format!("MMLU lost {lost} points, allowed {limit}"));
        }
        (!found.is_empty()).then(|| found.join("; "))
    }
}

/// The base model as it was, and what is asked of it and of the model in training.
pub(super) struct Gauge {
    recipe: DamageRecipe,
    untrained: Decoder,
    /// Chats with the base model's replies.
    rows: Vec<Vec<TokenId>>,
    /// The base model's accuracy on MMLU, percent; none where it is not asked.
    accuracy: Option<f64>,
}

impl Gauge {
    /// Asks the base model; `untrained` is its decoder before training.
    ///
    /// # Errors
    /// When a file is missing or damaged, or a chat is too long for the model.
    pub(super) fn new(recipe: &DamageRecipe, base: &BaseModel, untrained: Decoder) -> Result<Self, Error> {
        let before = LanguageModel { decoder: &untrained, ..LanguageModel::of_base(base) };
        let said = match &recipe.chats {
            Some(file) => load_texts(Path::new(file))?,
            None => load_multiple_choice(&split_file(Path::new(&recipe.mmlu), "test")?)?
                .into_iter()
                .map(|row| row.question)
                .collect(),
        };
        let mut rows = Vec::new();
        for said in spread(said, recipe.num_chats) {
            let mut row = base.opening_ids(&said)?;
            row.extend(before.greedy(&row, REPLY_TOKENS, &base.generation.eos_token_ids)?);
            rows.push(row);
        }
        let accuracy = mmlu(recipe, &before)?;
        Ok(Self { recipe: recipe.clone(), untrained, rows, accuracy })
    }

    /// What the model in training has lost.
    ///
    /// # Errors
    /// When a logit is not finite.
    pub(super) fn measure(&self, after: &LanguageModel<'_>) -> Result<Damage, Error> {
        let before = LanguageModel {
            decoder: &self.untrained,
            adapter: None,
            adapts_plain_rows: false,
            anchors: None,
            ..*after
        };
        let drift = drift(&before, after, &self.rows, &mut |_| {})?;
        let mmlu_drop = self.accuracy.zip(mmlu(&self.recipe, after)?).map(|(before, after)| before - after);
        Ok(Damage { mean_kl: drift.mean_kl, max_kl: drift.max_kl, mmlu_drop })
    }
}

/// The error of a run that is beyond its budget where it is measured first.
pub(super) fn none_within(step: u64, beyond: &str) -> Error {
    let reason = format!(
        "{beyond}, at the first measurement, so that there is no model within the budget; measure more often \
         (validation.every_steps) or learn more slowly (optimizer.learning_rate)"
    );
    Error::Training { step, reason }
}

/// Accuracy on MMLU, percent, where it has a limit.
fn mmlu(recipe: &DamageRecipe, model: &LanguageModel<'_>) -> Result<Option<f64>, Error> {
    if recipe.max_mmlu_drop.is_none() {
        return Ok(None);
    }
    let options = LanguageOptions { limit: recipe.num_questions, ..LanguageOptions::default() };
    let score = score_language_task(Path::new(&recipe.mmlu), TaskKind::LetterChoice, model, &options, &mut |_, _| {})?;
    Ok(score.metrics.first().map(|(_, accuracy)| 100.0 * accuracy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_a_limit_or_not_measured() {
        let recipe = |max_kl, max_mmlu_drop| DamageRecipe { max_kl, max_mmlu_drop, ..DamageRecipe::default() };
        let damage = |mean_kl, mmlu_drop| Damage { mean_kl, max_kl: 9.0, mmlu_drop };
        let within = |damage: Damage, recipe: &DamageRecipe| damage.beyond(recipe).is_none();
        assert!(within(damage(5.0, None), &recipe(None, None)));
        assert!(within(damage(0.5, None), &recipe(Some(0.5), None)));
        assert!(!within(damage(0.51, None), &recipe(Some(0.5), None)));
        assert!(!within(damage(f64::NAN, None), &recipe(Some(0.5), None)));
        assert!(within(damage(9.0, Some(-3.0)), &recipe(None, Some(0.0))));
        assert!(!within(damage(0.0, Some(1.5)), &recipe(Some(1.0), Some(1.0))));
        assert!(!within(damage(0.0, None), &recipe(None, Some(1.0))));
    }
}
