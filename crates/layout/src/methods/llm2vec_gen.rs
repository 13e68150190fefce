//! LLM2Vec-Gen (arXiv 2603.10913): after a query, t thought tokens and k compression tokens; the states of the latter
//! are drawn to the embedding of the frozen model's own answer, and the frozen model must write the answer with them as
//! soft inputs (section 2). `(1 - α) · next_token + α · alignment`; the vector is the mean over the compression tokens.
//!
//! A pair is a query and the model's answer to it. The teacher is the frozen model too: the mean over the answer's
//! tokens, BOS left out. In place of the paper's two MLPs over the tokens' states a low-rank update acts at the tokens,
//! so that everything else, chat included, stays the frozen model's. Below, a query of two tokens, t = 1 and k = 1; an
//! answer of two tokens behind the soft input; the teacher's row.
//!
//! ```text
//! #...    #..    #.
//! ##..    ##.    ##
//! ###.    ###
//! ####
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::row_builder::RowBuilder;
use super::{check_num_special_tokens, check_text, parse, soft_inputs, special_tokens};
use crate::{
    Continuation, Example, Input, Layout, Loss, Method, MethodContext, MethodError, Objective, Plan, Pooled, Rng, Role,
    SpecialInit, SpecialToken, TokenId, View,
};

pub(crate) const NAME: &str = "llm2vec-gen";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// t, trained tokens between the query and the compression tokens.
    num_thought_tokens: u32,
    /// k, compression tokens.
    num_special_tokens: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { num_thought_tokens: 10, num_special_tokens: 10 }
    }
}

struct Llm2VecGen {
    settings: Settings,
    bos: Option<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings: Settings = parse(NAME, settings)?;
    check_num_special_tokens(NAME, settings.num_special_tokens)?;
    if settings.num_thought_tokens > 0 {
        check_num_special_tokens(NAME, settings.num_thought_tokens)?;
    }
    Ok(Box::new(Llm2VecGen { settings, bos: context.bos }))
}

impl Llm2VecGen {
    /// `[bos] query thought compression`.
    fn query(&self, query: &[TokenId]) -> Result<Layout, MethodError> {
        check_text(NAME, "text", query)?;
        let Settings { num_thought_tokens: t, num_special_tokens: k } = self.settings;
        let mut row = RowBuilder::default();
        row.tokens(self.bos.as_slice(), Role::Prefix, false)?;
        row.tokens(query, Role::Prefix, false)?;
        row.add((0..t).map(Input::Special), Role::Special, true)?;
        let compression = row.add((t..t + k).map(Input::Special), Role::Special, true)?;
        row.pool(Pooled::mean(View::Query, compression));
        Ok(row.build()?)
    }

    /// The states of the compression tokens, and the answer behind them.
    fn answer(&self, query: &Layout, answer: &[TokenId]) -> Result<Layout, MethodError> {
        let mut row = RowBuilder::default();
        row.add(soft_inputs(0, query, self.settings.num_special_tokens, false), Role::Special, false)?;
        let span = row.tokens(answer, Role::Suffix, false)?;
        row.predict(span.start, answer);
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
        let Settings { num_thought_tokens, num_special_tokens } = self.settings;
        special_tokens(&vec![SpecialInit::VocabularyMean; (num_thought_tokens + num_special_tokens) as usize])
    }

    fn train_plan(&self, example: &Example, _rng: &mut Rng) -> Result<Plan, MethodError> {
        let answer = example.positive.as_deref().unwrap_or_default();
        check_text(NAME, "positive (the model's own answer)", answer)?;
        let query = self.query(&example.text)?;
        let written = self.answer(&query, answer)?;
        Ok(Plan { rows: vec![query, written, self.target(answer)?] })
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.query(text)?] })
    }

    fn read_plan(&self, text: &[TokenId], _: Continuation) -> Result<Plan, MethodError> {
        let query = self.query(text)?;
        let read = self.answer(&query, &[])?;
        Ok(Plan { rows: vec![query, read] })
    }

    fn needs_positive(&self) -> bool {
        true
    }

    fn needs_frozen_weights(&self) -> bool {
        true
    }

    fn objective(&self) -> Objective {
        Objective::next_token_and(Loss::Alignment)
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("numbers are JSON")
    }
}
