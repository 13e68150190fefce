//! Gist tokens (arXiv 2304.08467): an instruction, one special token repeated k times, and the output, which sees the
//! instruction through the gists alone (section 3.2); next-token loss on the output, the whole model adapted.
//!
//! The token starts as the mean of the vocabulary (section 4). A pair is instruction and output; a text on its own is
//! cut at a random place. Below, two tokens of instruction, `[E0] [E0]'` and two tokens of output:
//!
//! ```text
//! #.....
//! ##....
//! ###...
//! ####..
//! ..###.
//! ..####
//! ```

use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::row_builder::RowBuilder;
use super::{check_num_special_tokens, check_text, parse, special_tokens};
use crate::{
    Example, Input, Layout, Loss, Method, MethodContext, MethodError, Objective, Plan, Pooled, Rng, Role, SpecialInit,
    SpecialToken, TokenId, View,
};

pub(crate) const NAME: &str = "gist";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// k, how often the gist token is repeated.
    num_special_tokens: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { num_special_tokens: 10 }
    }
}

struct Gist {
    settings: Settings,
    bos: Option<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings: Settings = parse(NAME, settings)?;
    check_num_special_tokens(NAME, settings.num_special_tokens)?;
    Ok(Box::new(Gist { settings, bos: context.bos }))
}

impl Gist {
    /// `[bos] instruction [E0]×k output`; the vector is read where no output is trained on.
    fn row(&self, instruction: &[TokenId], output: &[TokenId]) -> Result<Layout, MethodError> {
        check_text(NAME, "text", instruction)?;
        let mut row = RowBuilder::default();
        row.tokens(self.bos.as_slice(), Role::Prefix, true)?;
        let before = row.tokens(instruction, Role::Prefix, true)?;
        let gists = row.add((0..self.settings.num_special_tokens).map(|_| Input::Special(0)), Role::Special, true)?;
        let after = row.tokens(output, Role::Suffix, true)?;
        row.hide(after.clone(), 0..before.end);
        row.predict(after.start, output);
        if output.is_empty() {
            row.pool(Pooled::mean(View::Query, gists));
        }
        Ok(row.build()?)
    }
}

impl Method for Gist {
    fn name(&self) -> &'static str {
        NAME
    }

    fn special_tokens(&self) -> Vec<SpecialToken> {
        special_tokens(&[SpecialInit::VocabularyMean])
    }

    fn train_plan(&self, example: &Example, rng: &mut Rng) -> Result<Plan, MethodError> {
        check_text(NAME, "text", &example.text)?;
        let text = example.text.as_slice();
        let (instruction, output) = match &example.positive {
            Some(output) => (text, output.as_slice()),
            None if text.len() > 1 => text.split_at(rng.random_range(1..text.len())),
            None => (text, [].as_slice()),
        };
        Ok(Plan { rows: vec![self.row(instruction, output)?] })
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.row(text, &[])?] })
    }

    fn adapts_plain_rows(&self) -> bool {
        true
    }

    fn objective(&self) -> Objective {
        Objective::only(Loss::NextToken)
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("numbers are JSON")
    }
}
