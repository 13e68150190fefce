//! SimCSE on a causal model (arXiv 2104.08821, equation 1): the text runs twice under different dropout, and the two
//! vectors must find each other among those of the batch. Every weight that is trained acts on chat too.
//!
//! ```text
//! #...
//! ##..
//! ###.
//! ####
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::parse;
use super::text_row::{TextPooling, TextRow};
use crate::{Base, Example, Layout, Loss, Method, MethodContext, MethodError, Objective, Plan, Rng, TokenId, View};

pub(crate) const NAME: &str = "simcse";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    pooling: TextPooling,
}

impl Default for Settings {
    fn default() -> Self {
        Self { pooling: TextPooling::WeightedMean }
    }
}

struct SimCse {
    settings: Settings,
    before: Vec<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings = parse(NAME, settings)?;
    Ok(Box::new(SimCse { settings, before: context.bos.into_iter().collect() }))
}

impl SimCse {
    fn row(&self) -> TextRow<'_> {
        TextRow { method: NAME, before: &self.before, base: Base::Causal, pooling: self.settings.pooling }
    }

    fn embed(&self, text: &[TokenId]) -> Result<Layout, MethodError> {
        self.row().embed(text, View::Query)
    }
}

impl Method for SimCse {
    fn name(&self) -> &'static str {
        NAME
    }

    fn train_plan(&self, example: &Example, _rng: &mut Rng) -> Result<Plan, MethodError> {
        self.row().pair(example)
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.embed(text)?] })
    }

    fn adapts_plain_rows(&self) -> bool {
        true
    }

    fn objective(&self) -> Objective {
        Objective::only(Loss::Contrastive)
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("names are JSON")
    }
}
