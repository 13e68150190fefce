//! In-context autoencoder (arXiv 2307.06945): the adapted model reads a text and k memory tokens, and the states of
//! these are soft inputs of the model without the adapter, which writes the text again after `[AE]`, or its rest
//! (sections 2.2.1 and 2.2.2). Next-token loss on what it writes.
//!
//! Below, a text of two tokens and k = 2; then, adapter off, their states, `[AE]` and the text again.
//!
//! ```text
//! #...    #....
//! ##..    ##...
//! ###.    ###..
//! ####    ####.
//!         #####
//! ```

use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::row_builder::RowBuilder;
use super::{check_num_special_tokens, check_text, parse, soft_inputs, special_tokens, wrong_setting};
use crate::{
    Continuation, Example, Input, Layout, Loss, Method, MethodContext, MethodError, Objective, Plan, Pooled, Rng, Role,
    SpecialInit, SpecialToken, TokenId, View,
};

pub(crate) const NAME: &str = "icae";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// k, memory tokens; `[AE]` comes after them among the special tokens.
    num_special_tokens: u32,
    /// The share of texts of which the rest is written, not the text again.
    continuation_ratio: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { num_special_tokens: 128, continuation_ratio: 0.5 }
    }
}

struct Icae {
    settings: Settings,
    bos: Option<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings: Settings = parse(NAME, settings)?;
    check_num_special_tokens(NAME, settings.num_special_tokens)?;
    if !(0.0..=1.0).contains(&settings.continuation_ratio) {
        let found = settings.continuation_ratio.to_string();
        return Err(wrong_setting(NAME, "continuation_ratio", "between 0 and 1", found));
    }
    Ok(Box::new(Icae { settings, bos: context.bos }))
}

impl Icae {
    /// `[bos] text memory`, adapter on.
    fn encoder(&self, text: &[TokenId], pooled: bool) -> Result<Layout, MethodError> {
        check_text(NAME, "text", text)?;
        let mut row = RowBuilder::default();
        row.tokens(self.bos.as_slice(), Role::Prefix, true)?;
        row.tokens(text, Role::Prefix, true)?;
        let memory = row.add((0..self.settings.num_special_tokens).map(Input::Special), Role::Special, true)?;
        if pooled {
            row.pool(Pooled::mean(View::Query, memory));
        }
        Ok(row.build()?)
    }

    /// The memory of `encoder`, `[AE]` where the text is to come again, and what is written; adapter off.
    fn decoder(&self, encoder: &Layout, continuation: Continuation, ids: &[TokenId]) -> Result<Layout, MethodError> {
        let k = self.settings.num_special_tokens;
        let mut row = RowBuilder::default();
        row.add(soft_inputs(0, encoder, k, false), Role::Special, false)?;
        if continuation == Continuation::Again {
            row.add([Input::Special(k)], Role::Special, false)?;
        }
        let written = row.tokens(ids, Role::Suffix, false)?;
        row.predict(written.start, ids);
        Ok(row.build()?)
    }
}

impl Method for Icae {
    fn name(&self) -> &'static str {
        NAME
    }

    fn special_tokens(&self) -> Vec<SpecialToken> {
        special_tokens(&vec![SpecialInit::VocabularyMean; self.settings.num_special_tokens as usize + 1])
    }

    fn train_plan(&self, example: &Example, rng: &mut Rng) -> Result<Plan, MethodError> {
        let text = example.text.as_slice();
        let continues = rng.random_bool(self.settings.continuation_ratio) && text.len() > 1;
        let (read, continuation, written) = if continues {
            let (read, rest) = text.split_at(rng.random_range(1..text.len()));
            (read, Continuation::Rest, rest)
        } else {
            (text, Continuation::Again, text)
        };
        let encoder = self.encoder(read, false)?;
        let decoder = self.decoder(&encoder, continuation, written)?;
        Ok(Plan { rows: vec![encoder, decoder] })
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.encoder(text, true)?] })
    }

    fn read_plan(&self, text: &[TokenId], continuation: Continuation) -> Result<Plan, MethodError> {
        let encoder = self.encoder(text, false)?;
        let decoder = self.decoder(&encoder, continuation, &[])?;
        Ok(Plan { rows: vec![encoder, decoder] })
    }

    fn needs_frozen_weights(&self) -> bool {
        true
    }

    fn objective(&self) -> Objective {
        Objective::only(Loss::NextToken)
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("numbers are JSON")
    }
}
