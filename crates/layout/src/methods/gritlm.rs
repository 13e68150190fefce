//! GritLM (arXiv 2402.09906): one model that embeds under full visibility, after an instruction, and generates under
//! the causal one; contrastive and next-token loss together (equation 3), the vector is the mean over the text alone.
//!
//! Trained on unlabelled text here: a text's positive is the text again under other dropout, where no pair is given,
//! and the generative rows are the texts themselves. `(1 - α) · next_token + α · contrastive`.
//!
//! Below, an embedding row with two tokens before its three text tokens, and a generative row.
//!
//! ```text
//! #####    #..
//! #####    ##.
//! #####    ###
//! #####
//! #####
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::parse;
use super::text_row::{TextPooling, TextRow, next_token_row};
use crate::{Base, Example, Loss, Method, MethodContext, MethodError, Objective, Plan, Rng, TokenId, View};

pub(crate) const NAME: &str = "gritlm";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// What the vector is for; empty: none.
    instruction: String,
}

struct GritLm {
    settings: Settings,
    bos: Option<TokenId>,
    before: Vec<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings: Settings = parse(NAME, settings)?;
    let prompt = (context.encode)(&prompt(&settings.instruction));
    let before = context.bos.into_iter().chain(prompt).collect();
    Ok(Box::new(GritLm { settings, bos: context.bos, before }))
}

fn prompt(instruction: &str) -> String {
    match instruction {
        "" => "<|embed|>\n".to_owned(),
        instruction => format!("<|user|>\n{instruction}\n<|embed|>\n"),
    }
}

impl GritLm {
    fn row(&self) -> TextRow<'_> {
        TextRow { method: NAME, before: &self.before, base: Base::Full, pooling: TextPooling::Mean }
    }
}

impl Method for GritLm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn train_plan(&self, example: &Example, _rng: &mut Rng) -> Result<Plan, MethodError> {
        let mut plan = self.row().pair(example)?;
        let ids: Vec<TokenId> = self.bos.iter().chain(&example.text).copied().collect();
        plan.rows.push(next_token_row(&ids)?);
        Ok(plan)
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.row().embed(text, View::Query)?] })
    }

    fn instructed(&self, instruction: &str, text: &str) -> [String; 2] {
        [prompt(instruction), text.to_owned()]
    }

    /// In the place of the instruction of the settings.
    fn instructed_plan(&self, instruction: &[TokenId], text: &[TokenId]) -> Result<Plan, MethodError> {
        let before = [self.bos.as_slice(), instruction].concat();
        Ok(Plan { rows: vec![TextRow { before: &before, ..self.row() }.embed(text, View::Query)?] })
    }

    fn adapts_plain_rows(&self) -> bool {
        true
    }

    fn objective(&self) -> Objective {
        Objective::next_token_and(Loss::Contrastive)
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("texts are JSON")
    }
}
