//! Decoding while ids arrive: text is given out as soon as its bytes form whole characters.

use super::{Tokenizer, TokenizerError};

/// Ids after which text that still ends in a broken character is given out all the same: no character has so many
/// bytes.
const MAX_PENDING: usize = 8;

/// Turns a growing sequence of ids into pieces of text whose concatenation is the decoded whole.
///
/// ```
/// # fn show(tokenizer: &lapidary::text::tokenizer::Tokenizer, generated: Vec<u32>)
/// # -> Result<String, lapidary::text::tokenizer::TokenizerError> {
/// let mut stream = tokenizer.decode_stream(true);
/// let mut text = String::new();
/// for id in generated {
///     text += &stream.push(id)?;
/// }
/// text += &stream.finish()?;
/// # Ok(text) }
/// ```
#[derive(Debug)]
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// Ids of the last piece given out, kept because spaces may depend on them, then the pending ones.
    ids: Vec<u32>,
    num_given: usize,
    /// Text of the ids already given out.
    given: String,
}

impl<'t> DecodeStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), num_given: 0, given: String::new() }
    }

    /// Takes the next id; returns the text that is certain by now, often empty in the middle of a character.
    ///
    /// # Errors
    /// When the tokenizer fails on the ids.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        if !text.ends_with(char::REPLACEMENT_CHARACTER) {
            let whole = self.ids.len();
            return if text.len() <= self.given.len() { Ok(String::new()) } else { self.give(&text, whole) };
        }
        if self.ids.len() - self.num_given < MAX_PENDING {
            return Ok(String::new());
        }
        // The text may end in the middle of a character after replacement characters of its own; then it is whole,
        // and has fewer of them, without the last one to three bytes.
        let replaced = |text: &str| text.matches(char::REPLACEMENT_CHARACTER).count();
        let mut best = (text, self.ids.len());
        for keep in (self.ids.len() - 3..self.ids.len()).rev() {
            let shorter = self.tokenizer.decode(&self.ids[..keep], self.skip_special)?;
            if replaced(&shorter) + self.ids.len() - keep < replaced(&best.0) {
                best = (shorter, keep);
            }
        }
        self.give(&best.0, best.1)
    }

    /// The rest of the text; a character that never became whole is U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer fails on the ids.
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        let (text, whole) = (self.tokenizer.decode(&self.ids, self.skip_special)?, self.ids.len());
        self.give(&text, whole)
    }

    /// Gives out what is new in `text`, the text of the first `keep` ids.
    fn give(&mut self, text: &str, keep: usize) -> Result<String, TokenizerError> {
        let fresh = text.get(self.given.len()..).unwrap_or_default().to_owned();
        self.ids.drain(..self.num_given);
        self.num_given = keep - self.num_given;
        self.given = self.tokenizer.decode(&self.ids[..self.num_given], self.skip_special)?;
        Ok(fresh)
    }
}
