//! Position-weighted mean pooling (SGPT, arXiv 2202.08904, equation 2): the i-th of n text tokens,
//! counted from 1, weighs i / (1 + 2 + … + n), BOS left out; training-free.
//!
//! ```text
//! #...
//! ##..
//! ###.
//! ####
//! ```

use std::ops::Range;

use serde_json::Value;

use super::{check_text, no_settings, plain_plan};
use crate::{Method, MethodContext, MethodError, Plan, Pooled, TokenId, View};

pub(crate) const NAME: &str = "weighted-mean";

struct WeightedMean {
    bos: Option<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    no_settings(NAME, settings)?;
    Ok(Box::new(WeightedMean { bos: context.bos }))
}

impl Method for WeightedMean {
    fn name(&self) -> &'static str {
        NAME
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        check_text(NAME, "text", text)?;
        plain_plan(&[self.bos.as_slice(), text], 1, weighted)
    }
}

pub(super) fn weighted(span: Range<u32>) -> Pooled {
    let n = f64::from(span.end - span.start);
    let total = n * (n + 1.0) / 2.0;
    let weight = |rank: u32| (f64::from(rank) / total) as f32;
    Pooled { view: View::Query, weights: span.zip((1..).map(weight)).collect() }
}
