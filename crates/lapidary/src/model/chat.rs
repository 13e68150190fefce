//! Conversations to token ids, so that nobody can write a turn marker into a message.
//!
//! A template renders messages and markers into one text, in which a marker that a user typed looks like a real one.
//! So the strings of special tokens in roles and contents are replaced, before rendering, by characters that occur
//! nowhere else (private use, one for each token); the rendered text is encoded with its special tokens, and in the
//! places of these characters the strings are encoded as the ordinary characters that they are. Messages without such
//! strings, nearly all, are encoded in one piece, as `transformers` does it.

use super::base::BaseModel;
use crate::Error;
use crate::text::{ChatTemplate, Message, Tokenizer, TokenizerError};
use layout::TokenId;
use std::collections::BTreeSet;

/// The second private-use plane, which no tokenizer or script gives a meaning to.
const PRIVATE_USE: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10FFFD}';

/// The ids of a conversation up to the head of the next reply. What stands in roles and contents never becomes a
/// special token.
///
/// # Errors
/// When the template refuses the messages, or the tokenizer cannot encode them.
pub fn encode_chat(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
) -> Result<Vec<TokenId>, Error> {
    let mut marks = Marks::new(messages);
    let mut safe = Vec::with_capacity(messages.len());
    for message in messages {
        let (role, content) =
            (marks.neutralise(tokenizer, &message.role)?, marks.neutralise(tokenizer, &message.content)?);
        safe.push(Message { role, content });
    }
    marks.encode(tokenizer, &template.render(&safe, true)?)
}

impl BaseModel {
    /// The token ids of a conversation up to the head of the next reply.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], or when the template refuses the messages.
    pub fn chat_ids(&self, messages: &[Message]) -> Result<Vec<TokenId>, Error> {
        encode_chat(self.chat_template.as_ref().ok_or(Error::NoChatTemplate)?, &self.tokenizer, messages)
    }

    /// The token ids of plain text to be continued: BOS, where the model has one, and the text.
    ///
    /// # Errors
    /// When the text cannot be encoded.
    pub fn prompt_ids(&self, text: &str) -> Result<Vec<TokenId>, Error> {
        Ok(self.bos().into_iter().chain(self.tokenizer.encode(text)?).collect())
    }

    /// What the user says first, up to the head of the reply; plain text to be continued where the model was made
    /// without a chat template.
    ///
    /// # Errors
    /// When the template refuses the message, or the text cannot be encoded.
    pub fn opening_ids(&self, said: &str) -> Result<Vec<TokenId>, Error> {
        match &self.chat_template {
            Some(_) => self.chat_ids(&[Message { role: "user".into(), content: said.to_owned() }]),
            None => self.prompt_ids(said),
        }
    }
}

/// Characters that stand for the strings of special tokens.
struct Marks {
    free: Box<dyn Iterator<Item = char>>,
    used: Vec<(char, String)>,
}

impl Marks {
    fn new(messages: &[Message]) -> Self {
        let taken: BTreeSet<char> = messages
            .iter()
            .flat_map(|m| m.role.chars().chain(m.content.chars()))
            .filter(|c| PRIVATE_USE.contains(c))
            .collect();
        Self { free: Box::new(PRIVATE_USE.filter(move |c| !taken.contains(c))), used: Vec::new() }
    }

    /// `text` with a mark in the place of each string that the tokenizer would turn into a special token.
    fn neutralise(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<String, Error> {
        let mut text = text.to_owned();
        loop {
            let found: BTreeSet<TokenId> =
                tokenizer.encode_with_special(&text)?.into_iter().filter(|id| tokenizer.is_control(*id)).collect();
            if found.is_empty() {
                return Ok(text);
            }
            let mut tokens: Vec<String> = found.into_iter().filter_map(|id| tokenizer.id_to_token(id)).collect();
            // A token may be part of another's string.
            tokens.sort_by_key(|token| std::cmp::Reverse(token.len()));
            let mut changed = false;
            for token in &tokens {
                if text.contains(token.as_str()) {
                    text = text.replace(token.as_str(), self.mark(token)?.encode_utf8(&mut [0; 4]));
                    changed = true;
                }
            }
            if !changed {
                // The tokenizer reads the token in another spelling: there is nothing safe to put in its place.
                return Err(TokenizerError::SpecialInText { token: tokens.concat() }.into());
            }
        }
    }

    fn mark(&mut self, token: &str) -> Result<char, Error> {
        if let Some((mark, _)) = self.used.iter().find(|(_, t)| t == token) {
            return Ok(*mark);
        }
        let none = || Error::Internal("the messages use every private-use character".into());
        let mark = self.free.next().ok_or_else(none)?;
        self.used.push((mark, token.to_owned()));
        Ok(mark)
    }

    /// The ids of rendered text, marks read as the strings that they stand for.
    fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<TokenId>, Error> {
        let token = |c: char| self.used.iter().find(|(mark, _)| *mark == c).map(|(_, token)| token);
        let mut ids = Vec::new();
        for piece in text.split_inclusive(|c| token(c).is_some()) {
            let marked = piece.char_indices().next_back().and_then(|(at, c)| Some((at, token(c)?)));
            let plain = marked.map_or(piece, |(at, _)| &piece[..at]);
            if !plain.is_empty() {
                ids.extend(tokenizer.encode_with_special(plain)?);
            }
            if let Some((_, token)) = marked {
                ids.extend(tokenizer.encode(token)?);
            }
        }
        Ok(ids)
    }
}
