//! PromptEOL (arXiv 2307.16645): the last hidden state of a prompt that asks for the text in one word;
//! training-free. The pieces around the text are encoded on their own, so that the text's ids stay what
//! they are without them.
//!
//! ```text
//! This sentence : "{text}" means in one word:"
//!
//! #...
//! ##..
//! ###.
//! ####
//! ```

use serde_json::Value;

use super::{check_text, no_settings, plain_plan};
use crate::{Method, MethodContext, MethodError, Plan, Pooled, TokenId, View};

pub(crate) const NAME: &str = "prompt-eol";

struct PromptEol {
    bos: Option<TokenId>,
    before: Vec<TokenId>,
    after: Vec<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    no_settings(NAME, settings)?;
    let before = (context.encode)("This sentence : \"");
    let after = (context.encode)("\" means in one word:\"");
    check_text(NAME, "prompt", &after)?;
    Ok(Box::new(PromptEol { bos: context.bos, before, after }))
}

impl Method for PromptEol {
    fn name(&self) -> &'static str {
        NAME
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        check_text(NAME, "text", text)?;
        let pieces = [self.bos.as_slice(), &self.before, text, &self.after];
        plain_plan(&pieces, 3, |span| Pooled::last(View::Query, span))
    }
}
