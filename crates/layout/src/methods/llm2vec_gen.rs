//! LLM2Vec-Gen (arXiv 2603.10913): k trained tokens after a query are drawn to the embedding that the frozen model
//! gives its own answer, and the answer is to be written again through them alone.
//!
//! A pair is a query and the model's answer to it. The target is the mean over the answer's tokens, adapter off, BOS
//! left out. `(1 - α) · next_token + α · alignment`. In place of the paper's MLP over the tokens' states a low-rank
//! update acts at the tokens, so that everything else, chat included, stays the frozen model's. Below, a query of two
//! tokens, k = 2 and an answer of two tokens; then the answer's own row.
//!
//! ```text
//! #.....    #.
//! ##....    ##
//! ###...
//! ####..
//! ..###.
//! ..####
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::row_builder::RowBuilder;
use super::{check_num_special_tokens, check_text, special_tokens};
use crate::{
    Example, Input, Layout, Loss, Method, MethodContext, MethodError, Objective, Plan, Pooled, Rng, Role, SpecialInit,
    SpecialToken, TokenId, View,
};

pub(crate) const NAME: &str = "llm2vec-gen";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// k, trained tokens after the query.
    num_special_tokens: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { num_special_tokens: 10 }
    }
}

struct Llm2VecGen {
    settings: Settings,
    bos: Option<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings: Settings =
        serde_json::from_value(settings).map_err(|source| MethodError::Settings { method: NAME, source })?;
    check_num_special_tokens(NAME, settings.num_special_tokens)?;
    Ok(Box::new(Llm2VecGen { settings, bos: context.bos }))
}

impl Llm2VecGen {
    /// `[bos] query [E]s answer`.
    fn row(&self, query: &[TokenId], answer: &[TokenId]) -> Result<Layout, MethodError> {
        check_text(NAME, "text", query)?;
        let mut row = RowBuilder::default();
        row.tokens(self.bos.as_slice(), Role::Prefix, false)?;
        let before = row.tokens(query, Role::Prefix, false)?;
        let specials = row.add((0..self.settings.num_special_tokens).map(Input::Special), Role::Special, true)?;
        let after = row.tokens(answer, Role::Suffix, false)?;
        row.hide(after.clone(), 0..before.end);
        row.predict(after.start, answer);
        row.pool(Pooled::mean(View::Query, specials));
        Ok(row.build()?)
    }

    /// The answer as the frozen model embeds it.
    fn target(&self, answer: &[TokenId]) -> Result<Layout, MethodError> {
        let mut row = RowBuilder::default();
        row.tokens(self.bos.as_slice(), Role::Plain, false)?;
        let span = row.tokens(answer, Role::Plain, false)?;
        row.pool(Pooled::mean(View::Positive, span));
        Ok(row.build()?)
    }
}

impl Method for Llm2VecGen {
    fn name(&self) -> &'static str {
        NAME
    }

    fn special_tokens(&self) -> Vec<SpecialToken> {
        special_tokens(&vec![SpecialInit::VocabularyMean; self.settings.num_special_tokens as usize])
    }

    fn train_plan(&self, example: &Example, _rng: &mut Rng) -> Result<Plan, MethodError> {
        let answer = example.positive.as_deref().unwrap_or_default();
        check_text(NAME, "positive (the model's own answer)", answer)?;
        Ok(Plan { rows: vec![self.row(&example.text, answer)?, self.target(answer)?] })
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.row(text, &[])?] })
    }

    fn objective(&self) -> Objective {
        Objective::next_token_and(Loss::Alignment)
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("numbers are JSON")
    }
}
