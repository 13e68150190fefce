//! GEM (arXiv 2506.04344): special tokens `[E]` that a bottleneck mask turns into the text's embedding.
//!
//! A row is `prefix [E]s suffix` (section 3.1): the suffix, which is the text again (reconstruction) or
//! its rest (continuation), sees the text through the `[E]`s only. The loss is
//! `(1 - α) · next_token + α · contrastive` (section 3.2); the contrastive positive is the same text with
//! random tokens hidden. Below, three text tokens, `[E0] [E1]`, the positive `[E0]' [E1]'` (same
//! positions; the second text token is hidden from it) and the text again:
//!
//! ```text
//! #.........
//! ##........
//! ###.......
//! ####......
//! ###.#.....
//! #.#..#....
//! #.#...#...
//! ...##..#..
//! ...##..##.
//! ...##..###
//! ```
//!
//! Beyond the paper: the scopes `embed` and `special`, under which the prefix carries no label because it would
//! train a skill that chat never uses; the positive inside the same row; `[E]`s that see each other; a template
//! around the text; pairs and hard negatives. A given pair is about the whole text, so its row is never split.

mod row;
mod settings;
mod template;

use rand::Rng as _;
use serde_json::Value;

use self::row::{Row, plain};
use self::settings::{DropoutForm, Scope, Settings};
use self::template::Template;
use super::{check_text, special_tokens};
use crate::{
    Example, Layout, Loss, Method, MethodContext, MethodError, Objective, Plan, Rng, SpecialInit, SpecialToken,
    TokenId, View,
};

pub(crate) const NAME: &str = "gem";

struct Gem {
    settings: Settings,
    template: Template,
    inits: Vec<SpecialInit>,
    bos: Option<TokenId>,
}

pub(crate) fn build(settings: Value, context: &MethodContext) -> Result<Box<dyn Method + Send + Sync>, MethodError> {
    let settings = Settings::parse(settings)?;
    let (inits, template) = (settings.special_inits(context)?, Template::parse(&settings.template, context)?);
    Ok(Box::new(Gem { settings, template, inits, bos: context.bos }))
}

impl Method for Gem {
    fn name(&self) -> &'static str {
        NAME
    }

    fn special_tokens(&self) -> Vec<SpecialToken> {
        special_tokens(&self.inits)
    }

    fn train_plan(&self, example: &Example, rng: &mut Rng) -> Result<Plan, MethodError> {
        check_text(NAME, "text", &example.text)?;
        let settings = &self.settings;
        let mut rows = Vec::new();
        let is_plain = rng.random_bool(settings.plain_ratio);
        let (text, suffix) = if is_plain {
            let text: Vec<TokenId> = self.bos.iter().chain(&example.text).copied().collect();
            rows.push(plain(&text)?);
            (example.text.as_slice(), [].as_slice())
        } else {
            self.split(example, rng)
        };
        let form = settings.token_dropout.form;
        let hidden = settings.token_dropout.draw(text.len(), rng);
        let prefix = self.template.prefix(self.bos, text);
        let hidden_in_prefix = prefix.flags(&hidden);
        let in_row = example.positive.is_none() && form == DropoutForm::Visibility;
        let row = Row {
            prefix: &prefix.ids,
            hidden: in_row.then_some(&hidden_in_prefix),
            suffix,
            view: View::Query,
            // The text once: what repeats it, or stands around it, is known beforehand.
            labelled: if settings.scope == Scope::All && !is_plain { prefix.texts[0].clone() } else { 0..0 },
        };
        rows.push(row.layout(settings)?);
        match (&example.positive, form) {
            (Some(positive), _) => rows.push(self.embed_row(positive, View::Positive)?),
            (None, DropoutForm::Visibility) => {}
            (None, DropoutForm::None) => rows.push(self.embed_row(text, View::Positive)?),
            (None, DropoutForm::Delete) => {
                let kept = text.iter().zip(hidden).filter(|(_, hidden)| !hidden).map(|(&id, _)| id);
                rows.push(self.embed_row(&kept.collect::<Vec<_>>(), View::Positive)?);
            }
        }
        for negative in &example.negatives {
            rows.push(self.embed_row(negative, View::Negative)?);
        }
        Ok(Plan { rows })
    }

    fn embed_plan(&self, text: &[TokenId]) -> Result<Plan, MethodError> {
        Ok(Plan { rows: vec![self.embed_row(text, View::Query)?] })
    }

    fn adapts_plain_rows(&self) -> bool {
        self.settings.scope == Scope::All
    }

    /// `(1 - α) · next_token + α · contrastive`, or the contrastive loss alone where no row has a label.
    fn objective(&self) -> Objective {
        let labelled = self.settings.scope == Scope::All || self.settings.bottleneck_ratio > 0.0;
        if labelled {
            return Objective::next_token_and(Loss::Contrastive);
        }
        Objective::only(Loss::Contrastive)
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("plain numbers, strings and names are JSON")
    }
}

impl Gem {
    /// The prefix and the suffix of a row that is not plain; an empty suffix means no bottleneck.
    fn split<'a>(&self, example: &'a Example, rng: &mut Rng) -> (&'a [TokenId], &'a [TokenId]) {
        let text = example.text.as_slice();
        if !rng.random_bool(self.settings.bottleneck_ratio) {
            return (text, &[]);
        }
        let continues = rng.random_bool(self.settings.continuation_ratio);
        if continues && example.positive.is_none() && text.len() > 1 {
            return text.split_at(rng.random_range(1..text.len()));
        }
        (text, text)
    }

    /// `[bos] text [E]s`, without labels.
    fn embed_row(&self, text: &[TokenId], view: View) -> Result<Layout, MethodError> {
        let part = match view {
            View::Query => "text",
            View::Positive => "positive",
            View::Negative => "negative",
        };
        check_text(NAME, part, text)?;
        let prefix = self.template.prefix(self.bos, text);
        let row = Row { prefix: &prefix.ids, hidden: None, suffix: &[], view, labelled: 0..0 };
        Ok(row.layout(&self.settings)?)
    }
}
