//! Echo embeddings (arXiv 2402.15449): the text twice, the mean over the second copy, whose tokens have
//! seen the whole text despite the causal mask; training-free. The pieces around the text are encoded on
//! their own.
//!
//! ```text
//! Rewrite the sentence: {text}, rewritten sentence:{text}
//!
//! #...
//! ##..
//! ###.
//! ####
//! ```

use serde_json::Value;

use super::{check_text, no_settings, plain_plan};
use crate::{Method, MethodContext, MethodError, Plan, Pooled, TokenId, View};

pub(crate) const NAME: &str = "echo";

struct Echo {
    bos: Option<TokenId>,
    before: Vec<TokenId>,
    between: Vec<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    no_settings(NAME, settings)?;
    let before = (context.encode)("Rewrite the sentence: ");
    let between = (context.encode)(", rewritten sentence:");
    Ok(Box::new(Echo { bos: context.bos, before, between }))
}

impl Method for Echo {
    fn name(&self) -> &'static str {
        NAME
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        check_text(NAME, "text", text)?;
        let pieces = [self.bos.as_slice(), &self.before, text, &self.between, text];
        plain_plan(&pieces, 4, |span| Pooled::mean(View::Query, span))
    }
}
