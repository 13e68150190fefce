//! SepLLM (arXiv 2412.12094): a token sees the first tokens of the row, the separators before it and its neighbours
//! (section 3.1), in training and in decoding, where the rest leaves the KV cache. Next-token loss; works untrained.
//!
//! Positions are those of the text, not of the cache. The vector is the mean without BOS, which the paper does not
//! speak of. Below, one first token, a window of two, and a separator in the third place:
//!
//! ```text
//! #.....
//! ##....
//! ###...
//! #.##..
//! #.###.
//! #.#.##
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::row_builder::RowBuilder;
use super::{check_text, parse, wrong_setting};
use crate::{
    Anchors, Example, Layout, Loss, Method, MethodContext, MethodError, Objective, Plan, Pooled, Rng, Role, TokenId,
    View,
};

pub(crate) const NAME: &str = "sepllm";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// First tokens that stay in view.
    num_initial: u32,
    /// Neighbours that stay in view, the token itself among them.
    window: u32,
    /// Texts that stay in view, those of them that are one token.
    separators: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let separators = [".", ",", "?", "!", ";", ":", " ", "\t", "\n"].map(str::to_owned).to_vec();
        Self { num_initial: 4, window: 256, separators }
    }
}

struct SepLlm {
    settings: Settings,
    bos: Option<TokenId>,
    anchors: Anchors,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings: Settings = parse(NAME, settings)?;
    if settings.window == 0 {
        return Err(wrong_setting(NAME, "window", "at least 1", "0".to_owned()));
    }
    let ids = settings.separators.iter().map(|separator| (context.encode)(separator));
    let separators: Vec<TokenId> = ids.filter(|ids| ids.len() == 1).flatten().collect();
    if separators.is_empty() {
        let found = format!("{:?}", settings.separators);
        return Err(wrong_setting(NAME, "separators", "texts, one of which at least is one token", found));
    }
    let anchors = Anchors { num_initial: settings.num_initial, window: settings.window, separators };
    Ok(Box::new(SepLlm { settings, bos: context.bos, anchors }))
}

impl SepLlm {
    fn row(&self, text: &[TokenId], labelled: bool) -> Result<Layout, MethodError> {
        check_text(NAME, "text", text)?;
        let mut row = RowBuilder::default();
        row.tokens(self.bos.as_slice(), Role::Plain, true)?;
        let span = row.tokens(text, Role::Plain, true)?;
        row.see(self.anchors.visibility(&[self.bos.as_slice(), text].concat()));
        if labelled {
            row.predict(span.start, text);
        } else {
            row.pool(Pooled::mean(View::Query, span));
        }
        Ok(row.build()?)
    }
}

impl Method for SepLlm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn train_plan(&self, example: &Example, _rng: &mut Rng) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.row(&example.text, true)?] })
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.row(text, false)?] })
    }

    fn adapts_plain_rows(&self) -> bool {
        true
    }

    fn anchors(&self) -> Option<&Anchors> {
        Some(&self.anchors)
    }

    fn objective(&self) -> Objective {
        Objective::only(Loss::NextToken)
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("numbers and texts are JSON")
    }
}
