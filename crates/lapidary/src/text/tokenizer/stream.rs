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
        let broken = text.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() - self.num_given < MAX_PENDING;
        if broken || text.len() <= self.given.len() {
            return Ok(String::new());
        }
        self.give(&text)
    }

    /// The rest of the text; a character that never became whole is U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer fails on the ids.
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        self.give(&text)
    }

    fn give(&mut self, text: &str) -> Result<String, TokenizerError> {
        let fresh = text.get(self.given.len()..).unwrap_or_default().to_owned();
        self.ids.drain(..self.num_given);
        self.num_given = self.ids.len();
        self.given = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(fresh)
    }
}
