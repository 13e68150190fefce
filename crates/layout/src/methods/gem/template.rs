//! What stands around the text in a prefix: a prompt, or the text once more.

use std::ops::Range;

use crate::{MethodContext, MethodError, TokenId};

const PLACE: &str = "{text}";

/// A prompt with one or more places for the text. Its pieces are encoded on their own, so that the text's ids stay
/// what they are without them.
pub(super) struct Template {
    before: Vec<TokenId>,
    /// What follows the text at each of its places.
    after: Vec<Vec<TokenId>>,
}

/// A prefix, and where the text lies in it.
pub(super) struct Prefix {
    pub(super) ids: Vec<TokenId>,
    pub(super) texts: Vec<Range<usize>>,
}

impl Template {
    pub(super) fn parse(template: &str, context: &MethodContext) -> Result<Self, MethodError> {
        let mut pieces = template.split(PLACE).map(|piece| (context.encode)(piece));
        let before = pieces.next().unwrap_or_default();
        let after: Vec<_> = pieces.collect();
        if after.is_empty() {
            let expected = "a prompt with {text} in the place of the text";
            return Err(super::settings::wrong("template", expected, format!("{template:?}")));
        }
        Ok(Self { before, after })
    }

    /// `[bos] before text after`.
    pub(super) fn prefix(&self, bos: Option<TokenId>, text: &[TokenId]) -> Prefix {
        let mut ids: Vec<TokenId> = bos.iter().chain(&self.before).copied().collect();
        let mut texts = Vec::with_capacity(self.after.len());
        for after in &self.after {
            texts.push(ids.len()..ids.len() + text.len());
            ids.extend_from_slice(text);
            ids.extend_from_slice(after);
        }
        Prefix { ids, texts }
    }
}

impl Prefix {
    /// One flag for each token: that of the text's token at every place of the text, else false.
    pub(super) fn flags(&self, of_text: &[bool]) -> Vec<bool> {
        let mut flags = vec![false; self.ids.len()];
        for place in &self.texts {
            flags[place.clone()].copy_from_slice(of_text);
        }
        flags
    }
}
