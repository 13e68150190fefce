//! Conversations to token ids, so that nobody can write a turn marker into a message.
//!
//! A template renders messages and markers into one text, in which a marker that a user typed looks like a real one.
//! So the strings of special tokens in roles and contents are replaced, before rendering, by characters that occur
//! nowhere else (private use, one for each token); the rendered text is encoded with its special tokens, and in the
//! places of these characters the strings are encoded as the ordinary characters that they are. Messages without such
//! strings, nearly all, are encoded in one piece, as `transformers` does it.

use super::base::BaseModel;
use crate::Error;
use crate::text::chat_template::TemplateError;
use crate::text::{ChatTemplate, Message, Tokenizer, TokenizerError};
use layout::TokenId;
use std::collections::BTreeSet;

/// What a content is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentPart {
    /// Text.
    Text(String),
    /// A place for what is no text, by its number.
    Place(usize),
}

/// One turn of a conversation whose content may have places for what is no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartedMessage {
    /// Who speaks.
    pub role: String,
    /// What is said.
    pub content: Vec<ContentPart>,
}

/// A piece of an encoded conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptPart {
    /// Tokens.
    Ids(Vec<TokenId>),
    /// A place for what is no text, by its number.
    Place(usize),
}

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
    let parted = |Message { role, content }: &Message| PartedMessage {
        role: role.clone(),
        content: vec![ContentPart::Text(content.clone())],
    };
    let parts = encode_parts(template, tokenizer, &messages.iter().map(parted).collect::<Vec<_>>())?;
    let ids = parts.into_iter().flat_map(|part| match part {
        PromptPart::Ids(ids) => ids,
        PromptPart::Place(_) => Vec::new(),
    });
    Ok(ids.collect())
}

/// As [`encode_chat`], with places in contents.
///
/// # Errors
/// As [`encode_chat`], and when the template leaves a place out or repeats one.
pub fn encode_parts(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[PartedMessage],
) -> Result<Vec<PromptPart>, Error> {
    let mut marks = Marks::new(messages);
    let (mut safe, mut num_places) = (Vec::with_capacity(messages.len()), 0);
    for message in messages {
        let role = marks.neutralise(tokenizer, &message.role)?;
        let mut content = String::new();
        for part in &message.content {
            match part {
                ContentPart::Text(text) => content += &marks.neutralise(tokenizer, text)?,
                ContentPart::Place(number) => {
                    content.push(marks.mark(Meaning::Place(*number))?);
                    num_places += 1;
                }
            }
        }
        safe.push(Message { role, content });
    }
    let parts = marks.encode(tokenizer, &template.render(&safe, true)?)?;
    let found = parts.iter().filter(|part| matches!(part, PromptPart::Place(_))).count();
    if found != num_places {
        let message = format!("expected {num_places} places in the rendered messages, found {found}");
        return Err(TemplateError::Refused { message }.into());
    }
    Ok(parts)
}

impl BaseModel {
    /// The token ids of a conversation up to the head of the next reply.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`], or when the template refuses the messages.
    pub fn chat_ids(&self, messages: &[Message]) -> Result<Vec<TokenId>, Error> {
        encode_chat(self.chat_template.as_ref().ok_or(Error::NoChatTemplate)?, &self.tokenizer, messages)
    }

    /// As [`BaseModel::chat_ids`], with places in contents.
    ///
    /// # Errors
    /// As [`BaseModel::chat_ids`], and when the template leaves a place out or repeats one.
    pub fn chat_parts(&self, messages: &[PartedMessage]) -> Result<Vec<PromptPart>, Error> {
        encode_parts(self.chat_template.as_ref().ok_or(Error::NoChatTemplate)?, &self.tokenizer, messages)
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

/// What a mark stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    /// The string of a special token.
    Token(String),
    Place(usize),
}

/// Characters that stand for what is not to be encoded as it is written.
struct Marks {
    free: Box<dyn Iterator<Item = char>>,
    used: Vec<(char, Meaning)>,
}

impl Marks {
    fn new(messages: &[PartedMessage]) -> Self {
        let text = |part: &ContentPart| match part {
            ContentPart::Text(text) => text.clone(),
            ContentPart::Place(_) => String::new(),
        };
        let taken: BTreeSet<char> = messages
            .iter()
            .flat_map(|m| std::iter::once(m.role.clone()).chain(m.content.iter().map(text)))
            .flat_map(|text| text.chars().filter(|c| PRIVATE_USE.contains(c)).collect::<Vec<_>>())
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
                    let mark = self.mark(Meaning::Token(token.clone()))?;
                    text = text.replace(token.as_str(), mark.encode_utf8(&mut [0; 4]));
                    changed = true;
                }
            }
            if !changed {
                // The tokenizer reads the token in another spelling: there is nothing safe to put in its place.
                return Err(TokenizerError::SpecialInText { token: tokens.concat() }.into());
            }
        }
    }

    fn mark(&mut self, meaning: Meaning) -> Result<char, Error> {
        if let Some((mark, _)) = self.used.iter().find(|(_, used)| *used == meaning) {
            return Ok(*mark);
        }
        let none = || {
            let (expected, found) = ("a private-use character that they do not use".into(), "none".into());
            Error::Setting { field: "messages".into(), expected, found }
        };
        let mark = self.free.next().ok_or_else(none)?;
        self.used.push((mark, meaning));
        Ok(mark)
    }

    /// Rendered text, marks read as what they stand for.
    fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<PromptPart>, Error> {
        let meaning = |c: char| self.used.iter().find(|(mark, _)| *mark == c).map(|(_, meaning)| meaning);
        let (mut parts, mut ids) = (Vec::new(), Vec::new());
        for piece in text.split_inclusive(|c| meaning(c).is_some()) {
            let marked = piece.char_indices().next_back().and_then(|(at, c)| Some((at, meaning(c)?)));
            let plain = marked.map_or(piece, |(at, _)| &piece[..at]);
            if !plain.is_empty() {
                ids.extend(tokenizer.encode_with_special(plain)?);
            }
            match marked {
                None => {}
                Some((_, Meaning::Token(token))) => ids.extend(tokenizer.encode(token)?),
                Some((_, Meaning::Place(number))) => {
                    parts.extend([PromptPart::Ids(std::mem::take(&mut ids)), PromptPart::Place(*number)]);
                }
            }
        }
        parts.push(PromptPart::Ids(ids));
        Ok(parts)
    }
}
