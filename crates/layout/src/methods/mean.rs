//! Mean pooling: the mean of the last hidden states over the text, BOS left out; training-free.
//!
//! ```text
//! #...
//! ##..
//! ###.
//! ####
//! ```

use serde_json::Value;

use super::{check_text, no_settings, plain_plan};
use crate::{Method, MethodContext, MethodError, Plan, Pooled, TokenId, View};

pub(crate) const NAME: &str = "mean";

struct Mean {
    bos: Option<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    no_settings(NAME, settings)?;
    Ok(Box::new(Mean { bos: context.bos }))
}

impl Method for Mean {
    fn name(&self) -> &'static str {
        NAME
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        check_text(NAME, "text", text)?;
        plain_plan(&[self.bos.as_slice(), text], 1, |span| Pooled::mean(View::Query, span))
    }
}
