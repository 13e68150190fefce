//! A recipe: everything that decides what a training run learns, as one TOML file.

use super::damage::DamageRecipe;
use super::schedule::{AlphaSchedule, Decay};
use crate::Error;
use crate::data::DataSpec;
use crate::model::{LoraConfig, WeightFormat};
use serde::{Deserialize, Serialize};

/// Which weights are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trained {
    /// A low-rank adapter and the special rows; the base model stays as it is.
    #[default]
    Lora,
    /// Every weight.
    Full,
}

/// The method and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodRecipe {
    /// Name in the registry.
    pub name: String,
    /// The method's own settings.
    #[serde(default)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// Optimiser and schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerRecipe {
    /// Peak learning rate of the adapter, or of all weights.
    pub learning_rate: f64,
    /// Peak learning rate of the special rows.
    pub special_learning_rate: f64,
    /// Peak learning rate of a learnable temperature.
    pub temperature_learning_rate: f64,
    /// Decoupled weight decay of the adapter or weights.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The gradient is scaled down to this norm over all variables.
    pub max_grad_norm: f64,
    /// Shape after warm-up.
    pub decay: Decay,
    /// Share of the steps that warm up.
    pub warmup_ratio: f64,
    /// Learning rate at the end, as a share of the peak.
    pub floor_ratio: f64,
}

impl Default for OptimizerRecipe {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            special_learning_rate: 3e-3,
            temperature_learning_rate: 1e-2,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_grad_norm: 1.0,
            decay: Decay::Cosine,
            warmup_ratio: 0.1,
            floor_ratio: 0.02,
        }
    }
}

/// Training-free embeddings of the base model, whose similarities the trained ones are to have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherRecipe {
    /// Methods whose cosines are averaged; none: no teacher.
    pub methods: Vec<MethodRecipe>,
    /// Weight of the distillation, beside `(1 - α) next-token + α contrastive`.
    pub weight: f64,
}

impl Default for TeacherRecipe {
    fn default() -> Self {
        Self { methods: Vec::new(), weight: 1.0 }
    }
}

/// The losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossRecipe {
    /// Weight of the contrastive loss.
    pub alpha: AlphaSchedule,
    /// Start of the temperature.
    pub temperature: f64,
    /// Learn the temperature: the logit scale `exp(t)`, t in [0, ln 100] (CLIP, arXiv 2103.00020).
    pub learnable_temperature: bool,
    /// Dropout of the outputs of attention and feed-forward, where gradients flow.
    pub hidden_dropout: f64,
    /// Distillation of the base model's own similarities; its loss has no temperature. A continuation row (see the
    /// method's settings) shows the special tokens a part of the text, the teacher reads all of it.
    pub teacher: TeacherRecipe,
}

impl Default for LossRecipe {
    fn default() -> Self {
        Self {
            alpha: AlphaSchedule::Ramp { value: 0.9, ramp_ratio: 0.3 },
            temperature: 0.05,
            learnable_temperature: false,
            hidden_dropout: 0.0,
            teacher: TeacherRecipe::default(),
        }
    }
}

/// Where a text of training ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// At its end, or at the longest length that is allowed.
    #[default]
    Longest,
    /// At a length drawn uniformly from the shortest allowed to its own, anew at each pass over the data: what is to
    /// read texts of every length must have seen some. Positives and negatives stay whole.
    Random,
}

/// Amounts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetRecipe {
    /// Rows of training text to learn from in all.
    pub rows: u64,
    /// Rows of a step: every other row of it is an in-batch negative.
    pub batch_rows: usize,
    /// Positions run with a graph at a time; bounds memory and does not change the result (but for which numbers
    /// hidden dropout draws).
    pub micro_batch_tokens: usize,
    /// Longer rows are cut, and counted.
    pub max_tokens: usize,
    /// Where else texts are cut.
    pub cut: Cut,
    /// Shorter rows are passed over, and counted.
    pub min_tokens: usize,
    /// Rows held by the shuffle buffer.
    pub shuffle_buffer: usize,
}

impl Default for BudgetRecipe {
    fn default() -> Self {
        Self {
            rows: 4096,
            batch_rows: 64,
            micro_batch_tokens: 768,
            max_tokens: 64,
            cut: Cut::Longest,
            min_tokens: 3,
            shuffle_buffer: 4096,
        }
    }
}

/// Validation while training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationRecipe {
    /// An STS file (sentence1, sentence2, score); none: no validation.
    pub sts: Option<String>,
    /// Steps between validations; 0: at the end alone.
    pub every_steps: u64,
    /// Use this many pairs alone, evenly spaced over the file; 0: all.
    pub pairs: usize,
}

/// A complete recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The base model: a built-in name, a GGUF file, a directory, or a hub id.
    pub model: String,
    /// What is trained.
    #[serde(default)]
    pub trained: Trained,
    /// Number format of frozen weights.
    #[serde(default)]
    pub weights: WeightFormat,
    /// Number format of the weights by which the beginnings of rows run that need no gradient; none: as `weights`. `"int8"`, on
    /// a CPU alone, is faster, at the cost of a second copy of the layers' weights, and what is trained then reads keys and
    /// values of that rounding. Without effect where an adapter acts on the whole row, as with scope `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_weights: Option<WeightFormat>,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// The method.
    pub method: MethodRecipe,
    /// Training text.
    pub data: DataSpec,
    /// Amounts.
    #[serde(default)]
    pub budget: BudgetRecipe,
    /// Losses.
    #[serde(default)]
    pub loss: LossRecipe,
    /// Low-rank update (for `trained = "lora"`).
    #[serde(default)]
    pub lora: LoraConfig,
    /// Optimiser.
    #[serde(default)]
    pub optimizer: OptimizerRecipe,
    /// Validation.
    #[serde(default)]
    pub validation: ValidationRecipe,
    /// What training may cost the model as a language model.
    #[serde(default)]
    pub damage: DamageRecipe,
}

fn wrong(field: &str, expected: &str, found: impl ToString) -> Error {
    Error::Setting { field: field.into(), expected: expected.into(), found: found.to_string() }
}

impl Recipe {
    /// Parses TOML, with `key.path=value` overrides applied before types are checked, and validates.
    ///
    /// # Errors
    /// When the text is no TOML, a key is unknown, or a value is outside its range; the message names the key.
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self, Error> {
        let mut table: toml::Table = toml::from_str(text).map_err(|e: toml::de::Error| {
            let before = e.span().map(|span| &text.as_bytes()[..span.start.min(text.len())]);
            let line =
                before.map(|before| format!("line {}: ", before.iter().filter(|byte| **byte == b'\n').count() + 1));
            Error::Recipe(format!("{}{}", line.unwrap_or_default(), e.message().replace('\n', " ")))
        })?;
        for item in overrides {
            set(&mut table, item)?;
        }
        let recipe: Self = table
            .try_into()
            .map_err(|e: toml::de::Error| Error::Recipe(e.to_string().trim_end().replace('\n', " ")))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe as TOML, every default written out.
    ///
    /// # Errors
    /// When a method setting has no TOML form (null).
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string_pretty(self).map_err(|e| Error::Recipe(e.to_string()))
    }

    /// Optimiser steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.budget.rows.div_ceil(self.budget.batch_rows as u64)
    }

    fn validate(&self) -> Result<(), Error> {
        let ratio = |field: &str, value: f64, top: f64| {
            if (0.0..=top).contains(&value) {
                Ok(())
            } else {
                Err(wrong(field, &format!("a number from 0 to {top}"), value))
            }
        };
        let positive = |field: &str, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(wrong(field, "a number above 0", value)) }
        };
        let OptimizerRecipe {
            learning_rate,
            special_learning_rate,
            temperature_learning_rate,
            weight_decay,
            beta1,
            beta2,
            eps,
            max_grad_norm,
            decay: _,
            warmup_ratio,
            floor_ratio,
        } = &self.optimizer;
        positive("optimizer.learning_rate", *learning_rate)?;
        positive("optimizer.special_learning_rate", *special_learning_rate)?;
        positive("optimizer.temperature_learning_rate", *temperature_learning_rate)?;
        ratio("optimizer.weight_decay", *weight_decay, 1.0)?;
        ratio("optimizer.beta1", *beta1, 0.999_999)?;
        ratio("optimizer.beta2", *beta2, 0.999_999)?;
        positive("optimizer.eps", *eps)?;
        positive("optimizer.max_grad_norm", *max_grad_norm)?;
        ratio("optimizer.warmup_ratio", *warmup_ratio, 1.0)?;
        ratio("optimizer.floor_ratio", *floor_ratio, 1.0)?;
        ratio("loss.alpha.value", self.loss.alpha.value(), 1.0)?;
        if let AlphaSchedule::Ramp { ramp_ratio, .. } = self.loss.alpha {
            positive("loss.alpha.ramp_ratio", ramp_ratio)?;
        }
        positive("loss.temperature", self.loss.temperature)?;
        ratio("loss.hidden_dropout", self.loss.hidden_dropout, 0.9)?;
        let TeacherRecipe { methods, weight } = &self.loss.teacher;
        positive("loss.teacher.weight", *weight)?;
        if self.trained == Trained::Full
            && let Some(format) = self.prefix_weights
        {
            let found = format!("{format:?}").to_lowercase();
            return Err(wrong("prefix_weights", "none with trained = \"full\" (no row has such a beginning)", found));
        }
        if self.trained == Trained::Full && !methods.is_empty() {
            return Err(wrong(
                "loss.teacher.methods",
                "none with trained = \"full\" (the teacher is the base model)",
                methods.len(),
            ));
        }
        let BudgetRecipe { rows, batch_rows, micro_batch_tokens, max_tokens, cut: _, min_tokens, shuffle_buffer } =
            &self.budget;
        positive("budget.rows", *rows as f64)?;
        if *batch_rows < 2 {
            return Err(wrong("budget.batch_rows", "at least 2 (the other rows are the negatives)", batch_rows));
        }
        positive("budget.micro_batch_tokens", *micro_batch_tokens as f64)?;
        positive("budget.max_tokens", *max_tokens as f64)?;
        if min_tokens > max_tokens || *min_tokens == 0 {
            return Err(wrong("budget.min_tokens", "at least 1 and at most max_tokens", min_tokens));
        }
        positive("budget.shuffle_buffer", *shuffle_buffer as f64)?;
        if self.data.paths.is_empty() {
            return Err(wrong("data.paths", "at least one file or glob", "none"));
        }
        self.damage.validate(self.validation.every_steps)
    }
}

/// Sets `a.b.c=value` in a table; the value is read as TOML, or as a string where it is no TOML.
fn set(table: &mut toml::Table, item: &str) -> Result<(), Error> {
    let (path, value) = item.split_once('=').ok_or_else(|| wrong("--set", "key=value", item))?;
    let parsed: Result<toml::Table, _> = toml::from_str(&format!("value = {value}"));
    let value =
        parsed.ok().and_then(|mut t| t.remove("value")).unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(|| wrong("--set", "key=value", item))?;
    let mut at = table;
    for key in keys {
        let entry = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = entry.as_table_mut().ok_or_else(|| wrong("--set", "a path of tables", item))?;
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "model = 'smollm2-135m'\n[method]\nname = 'gem'\n[data]\npaths = ['a.txt']\n";

    #[test]
    fn defaults_overrides_and_round_trip() {
        let recipe = Recipe::parse(
            SMALL,
            &["budget.rows=100".into(), "model=other.gguf".into(), "method.settings.num_special_tokens=3".into()],
        );
        let recipe = recipe.expect("valid");
        assert_eq!((recipe.budget.rows, recipe.steps(), recipe.model.as_str()), (100, 2, "other.gguf"));
        assert_eq!(Recipe::parse(&recipe.to_toml().expect("toml"), &[]).expect("valid"), recipe);
    }

    #[test]
    fn unknown_keys_and_bad_values_name_the_key() {
        let message = |set: &str| Recipe::parse(SMALL, &[set.into()]).expect_err("refused").to_string();
        assert!(message("budget.row=3").contains("row"), "{}", message("budget.row=3"));
        assert!(message("loss.temperature=0").contains("loss.temperature"));
        assert!(message("optimizer.learning_rate=nan").contains("optimizer.learning_rate"));
        assert!(message("budget.batch_rows=1").contains("negatives"));
        assert!(message("loss.alpha.value=2").contains("alpha"));
        assert!(!message("nonsense=1").contains('\n'));
        let full = Recipe::parse(SMALL, &["trained=full".into(), "prefix_weights=int8".into()]).expect_err("refused");
        assert!(full.to_string().contains("prefix_weights: expected none"), "{full}");
        assert!(message("damage.max_kl=nan").contains("damage.max_kl"));
        assert!(message("damage.max_mmlu_drop=-1").contains("damage.max_mmlu_drop"));
        assert!(message("damage.max_kl=0.1").contains("validation.every_steps"));
        assert!(message("damage.always=true").contains("damage.always"));
        assert!(message("damage.num_chats=0").contains("damage.num_chats"));
    }
}
