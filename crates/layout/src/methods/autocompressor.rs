//! AutoCompressor (arXiv 2305.14788): a text in segments, k summary tokens after each; their last hidden states are
//! soft inputs of every later segment (summary accumulation, section 3.1). Next-token loss on all segments, the whole
//! model adapted.
//!
//! The segments are cut at random places (section 3.2). Gradients flow through soft inputs within groups of
//! `segments_per_substep` segments and end between them. The last token of a segment predicts the first of the next.
//! RoPE positions count on through the soft inputs of a row. Below, two segments of two tokens, k = 1: the second row
//! begins with the state of `[E0]`, and has no summary, since nothing follows.
//!
//! ```text
//! #..    #..
//! ##.    ##.
//! ###    ###
//! ```

use rand::seq::index::sample;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::row_builder::RowBuilder;
use super::{check_num_special_tokens, check_text, parse, soft_inputs, special_tokens, wrong_setting};
use crate::{
    Continuation, Example, Input, Layout, Loss, Method, MethodContext, MethodError, Objective, Plan, Pooled, Rng, Role,
    SpecialInit, SpecialToken, TokenId, View,
};

pub(crate) const NAME: &str = "autocompressor";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// k, summary tokens of each segment.
    num_special_tokens: u32,
    /// Segments of a training text, where it has as many tokens.
    num_segments: u32,
    /// Segments through which gradients flow together.
    segments_per_substep: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { num_special_tokens: 50, num_segments: 4, segments_per_substep: 2 }
    }
}

struct AutoCompressor {
    settings: Settings,
    bos: Option<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings: Settings = parse(NAME, settings)?;
    check_num_special_tokens(NAME, settings.num_special_tokens)?;
    for (field, value) in
        [("num_segments", settings.num_segments), ("segments_per_substep", settings.segments_per_substep)]
    {
        if value == 0 {
            return Err(wrong_setting(NAME, field, "at least 1", value.to_string()));
        }
    }
    Ok(Box::new(AutoCompressor { settings, bos: context.bos }))
}

impl AutoCompressor {
    /// The soft inputs of the next row: the summaries at the ends of all earlier ones.
    fn soft(&self, earlier: &[Layout]) -> Vec<Input> {
        let group = |row: usize| row / self.settings.segments_per_substep as usize;
        let of = |(from, row)| {
            let detached = group(from) != group(earlier.len());
            soft_inputs(from as u32, row, self.settings.num_special_tokens, detached)
        };
        earlier.iter().enumerate().flat_map(of).collect()
    }

    /// The rows of a text whose segments begin at `starts`: with a summary after the last to embed it, else with labels.
    fn rows(&self, text: &[TokenId], starts: &[usize], summarise_last: bool) -> Result<Vec<Layout>, MethodError> {
        let mut rows: Vec<Layout> = Vec::new();
        for (row, start) in starts.iter().enumerate() {
            let end = starts.get(row + 1).copied().unwrap_or(text.len());
            let mut builder = RowBuilder::default();
            if row == 0 {
                builder.tokens(self.bos.as_slice(), Role::Plain, true)?;
            }
            builder.add(self.soft(&rows), Role::Special, true)?;
            let segment = builder.tokens(&text[*start..end], Role::Plain, true)?;
            // A first token behind soft inputs is predicted by the segment before.
            let known = usize::from(row > 0);
            let predicted = &text[start + known..text.len().min(end + 1)];
            let is_last = end == text.len();
            if !is_last || summarise_last {
                let specials = (0..self.settings.num_special_tokens).map(Input::Special);
                let span = builder.add(specials, Role::Special, true)?;
                if is_last {
                    builder.pool(Pooled::mean(View::Query, span));
                }
            }
            if !summarise_last {
                builder.predict(segment.start + known as u32, predicted);
            }
            rows.push(builder.build()?);
        }
        Ok(rows)
    }
}

impl Method for AutoCompressor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn special_tokens(&self) -> Vec<SpecialToken> {
        special_tokens(&vec![SpecialInit::VocabularyMean; self.settings.num_special_tokens as usize])
    }

    fn train_plan(&self, example: &Example, rng: &mut Rng) -> Result<Plan, MethodError> {
        let text = example.text.as_slice();
        check_text(NAME, "text", text)?;
        let num_cuts = (self.settings.num_segments as usize).min(text.len()) - 1;
        let mut starts: Vec<usize> = sample(rng, text.len() - 1, num_cuts).into_iter().map(|at| at + 1).collect();
        starts.push(0);
        starts.sort_unstable();
        Ok(Plan { rows: self.rows(text, &starts, false)? })
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        check_text(NAME, "text", text)?;
        Ok(Plan { rows: self.rows(text, &[0], true)? })
    }

    fn read_plan(&self, text: &[TokenId], _: Continuation) -> Result<Plan, MethodError> {
        let mut plan = self.embed_plan(text)?;
        let mut row = RowBuilder::default();
        row.add(self.soft(&plan.rows), Role::Special, true)?;
        plan.rows.push(row.build()?);
        Ok(plan)
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
