//! Rows of the methods that adapt the whole model: a text between fixed pieces, the adapter on everywhere.

use std::ops::Range;

use rand::Rng as _;
use serde::{Deserialize, Serialize};

use super::{check_text, num_positions};
use crate::{
    Base, Example, Input, Layout, LayoutParts, MethodError, Plan, Pooled, Rng, Role, TokenId, View, Visibility,
};

/// How the states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TextPooling {
    Mean,
    WeightedMean,
    Last,
}

impl TextPooling {
    fn pool(self, view: View, span: Range<u32>) -> Pooled {
        match self {
            Self::Mean => Pooled::mean(view, span),
            Self::WeightedMean => Pooled { view, ..super::weighted_mean::weighted(span) },
            Self::Last => Pooled::last(view, span),
        }
    }
}

/// What a row of a text is made of.
pub(super) struct TextRow<'a> {
    pub(super) method: &'static str,
    /// What stands before the text, BOS included.
    pub(super) before: &'a [TokenId],
    pub(super) base: Base,
    pub(super) pooling: TextPooling,
}

impl TextRow<'_> {
    /// The row that gives the text's vector.
    pub(super) fn embed(&self, text: &[TokenId], view: View) -> Result<Layout, MethodError> {
        let part = match view {
            View::Query => "text",
            View::Positive => "positive",
            View::Negative => "negative",
        };
        check_text(self.method, part, text)?;
        let ids = [self.before, text].concat();
        let (start, end) = (self.before.len() as u32, num_positions(ids.len())?);
        row(&ids, vec![None; ids.len()], self.base, vec![self.pooling.pool(view, start..end)])
    }

    /// Rows of a query, its positive (the text again where none is given: the noise is the trainer's hidden-state
    /// dropout) and its hard negatives.
    pub(super) fn pair(&self, example: &Example) -> Result<Plan, MethodError> {
        let positive = example.positive.as_ref().unwrap_or(&example.text);
        let mut rows = vec![self.embed(&example.text, View::Query)?, self.embed(positive, View::Positive)?];
        for negative in &example.negatives {
            rows.push(self.embed(negative, View::Negative)?);
        }
        Ok(Plan { rows })
    }
}

/// A plain causal row, every token of which predicts the next one.
pub(super) fn next_token_row(ids: &[TokenId]) -> Result<Layout, MethodError> {
    let labels = ids.iter().skip(1).copied().map(Some).chain([None]).take(ids.len());
    row(ids, labels.collect(), Base::Causal, Vec::new())
}

/// A row under full visibility in which each text token is replaced by `mask` with the probability `ratio`, at least
/// one; the position before a masked token predicts it. The first token of the row is never masked.
pub(super) fn masked_row(ids: &[TokenId], mask: TokenId, ratio: f64, rng: &mut Rng) -> Result<Layout, MethodError> {
    let mut masked: Vec<bool> = (0..ids.len()).map(|at| at > 0 && rng.random_bool(ratio)).collect();
    if ids.len() > 1 && !masked.contains(&true) {
        masked[rng.random_range(1..ids.len())] = true;
    }
    let shown: Vec<TokenId> = ids.iter().zip(&masked).map(|(id, masked)| if *masked { mask } else { *id }).collect();
    let next = ids.iter().zip(&masked).skip(1).map(|(id, masked)| masked.then_some(*id));
    row(&shown, next.chain([None]).collect(), Base::Full, Vec::new())
}

fn row(ids: &[TokenId], labels: Vec<Option<TokenId>>, base: Base, pooled: Vec<Pooled>) -> Result<Layout, MethodError> {
    Ok(Layout::new(LayoutParts {
        inputs: ids.iter().map(|&id| Input::Token(id)).collect(),
        roles: vec![Role::Plain; ids.len()],
        positions: (0..num_positions(ids.len())?).collect(),
        labels,
        adapted: vec![true; ids.len()],
        visibility: Visibility { base, ..Visibility::default() },
        pooled,
    })?)
}
