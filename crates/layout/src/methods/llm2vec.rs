//! LLM2Vec (arXiv 2404.05961): every token sees every other; first masked next-token prediction (section 2.1: the
//! position before a masked token predicts it), then SimCSE (section 2.2), pooled by the mean.
//!
//! A plan has the rows of both stages: `(1 - α) · next_token + α · contrastive`, with α a step from 0 to 1 at the end
//! of the first. Rows of a loss without weight do not run. The paper merges the first stage's adapter before the
//! second; here one adapter goes through both.
//!
//! ```text
//! ####
//! ####
//! ####
//! ####
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::text_row::{TextPooling, TextRow, masked_row};
use super::{parse, wrong_setting};
use crate::{Base, Example, Loss, Method, MethodContext, MethodError, Objective, Plan, Rng, TokenId, View};

pub(crate) const NAME: &str = "llm2vec";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// The share of tokens that are masked.
    mask_ratio: f64,
    /// What stands in the place of a masked token; its first token is used.
    mask: String,
    pooling: TextPooling,
}

impl Default for Settings {
    fn default() -> Self {
        Self { mask_ratio: 0.2, mask: "_".to_owned(), pooling: TextPooling::Mean }
    }
}

struct Llm2Vec {
    settings: Settings,
    mask: TokenId,
    before: Vec<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings: Settings = parse(NAME, settings)?;
    if !(0.0..=1.0).contains(&settings.mask_ratio) {
        return Err(wrong_setting(NAME, "mask_ratio", "between 0 and 1", settings.mask_ratio.to_string()));
    }
    let mask = (context.encode)(&settings.mask);
    let mask = *mask
        .first()
        .ok_or_else(|| wrong_setting(NAME, "mask", "a text of at least one token", settings.mask.clone()))?;
    Ok(Box::new(Llm2Vec { settings, mask, before: context.bos.into_iter().collect() }))
}

impl Llm2Vec {
    fn row(&self) -> TextRow<'_> {
        TextRow { method: NAME, before: &self.before, base: Base::Full, pooling: self.settings.pooling }
    }
}

impl Method for Llm2Vec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn train_plan(&self, example: &Example, rng: &mut Rng) -> Result<Plan, MethodError> {
        let mut plan = self.row().pair(example)?;
        let ids = [&self.before, example.text.as_slice()].concat();
        plan.rows.push(masked_row(&ids, self.mask, self.settings.mask_ratio, rng)?);
        Ok(plan)
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.row().embed(text, View::Query)?] })
    }

    fn adapts_plain_rows(&self) -> bool {
        true
    }

    fn objective(&self) -> Objective {
        Objective::next_token_and(Loss::Contrastive)
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("numbers and names are JSON")
    }
}
