//! The vocabulary in the metadata of a GGUF file, checked.

use std::collections::HashMap;

use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;

use super::TokenizerError;
use crate::model::gguf::{GgufError, GgufFile};

/// Longest token, in bytes; bounds the work of deriving merges.
const MAX_TOKEN_BYTES: usize = 1 << 10;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Tokens with their kinds, and the rules that split text into them.
#[derive(Debug, Clone)]
pub(super) struct GgufVocabulary<'a> {
    pub(super) model: &'a str,
    /// Name of the pre-tokenizer of byte-level models.
    pub(super) pre: &'a str,
    pub(super) tokens: Vec<&'a str>,
    pub(super) kinds: Vec<TokenKind>,
    pub(super) scores: Option<Vec<f32>>,
    pub(super) merges: Option<Vec<&'a str>>,
    pub(super) unknown_id: Option<u32>,
    pub(super) add_space_prefix: Option<bool>,
}

impl<'a> GgufVocabulary<'a> {
    pub(super) fn read<S: AsRef<[u8]>>(file: &'a GgufFile<S>) -> Result<Self, TokenizerError> {
        let tokens = file.get_strings("tokenizer.ggml.tokens")?;
        check_tokens(&tokens)?;
        let kinds = match optional(file.get_i32s("tokenizer.ggml.token_type"))? {
            Some(numbers) => kinds(&numbers)?,
            None => kinds_without_types(file, tokens.len())?,
        };
        check_len("tokenizer.ggml.token_type", tokens.len(), kinds.len())?;
        let scores = optional(file.get_f32s("tokenizer.ggml.scores"))?;
        if let Some(scores) = &scores {
            check_len("tokenizer.ggml.scores", tokens.len(), scores.len())?;
        }
        Ok(Self {
            model: file.get_str("tokenizer.ggml.model")?,
            pre: optional(file.get_str("tokenizer.ggml.pre"))?.unwrap_or("default"),
            tokens,
            kinds,
            scores,
            merges: optional(file.get_strings("tokenizer.ggml.merges"))?,
            unknown_id: optional(file.get_u32("tokenizer.ggml.unknown_token_id"))?,
            add_space_prefix: optional(file.get_bool("tokenizer.ggml.add_space_prefix"))?,
        })
    }

    /// Tokens and their ids.
    pub(super) fn vocab(&self) -> Vocab {
        self.tokens.iter().zip(0u32..).map(|(token, id)| ((*token).to_owned(), id)).collect()
    }

    /// The merges, in their order; `None` when the file has none.
    pub(super) fn merges(&self) -> Result<Option<Vec<(String, String)>>, TokenizerError> {
        let Some(merges) = &self.merges else { return Ok(None) };
        let split = |(index, merge): (usize, &&str)| match merge.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
            _ => Err(TokenizerError::Merge { index, found: (*merge).to_owned() }),
        };
        merges.iter().enumerate().map(split).collect::<Result<_, _>>().map(Some)
    }

    /// The tokens that are found in the text before it is split: special ones and those the model's authors defined.
    pub(super) fn added_tokens(&self) -> Vec<AddedToken> {
        let added = |(token, kind): (&&str, &TokenKind)| match kind {
            TokenKind::Unknown | TokenKind::Control => Some(AddedToken::from(*token, true).normalized(false)),
            TokenKind::UserDefined => Some(AddedToken::from(*token, false).normalized(false)),
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => None,
        };
        self.tokens.iter().zip(&self.kinds).filter_map(added).collect()
    }
}

fn check_tokens(tokens: &[&str]) -> Result<(), TokenizerError> {
    let mut first_index = HashMap::with_capacity(tokens.len());
    for (index, token) in tokens.iter().enumerate() {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenizerError::TokenTooLong { index, limit: MAX_TOKEN_BYTES, found: token.len() });
        }
        if let Some(first) = first_index.insert(*token, index) {
            return Err(TokenizerError::DuplicateToken { token: (*token).to_owned(), first, second: index });
        }
    }
    Ok(())
}

fn check_len(key: &'static str, expected: usize, found: usize) -> Result<(), TokenizerError> {
    if expected == found { Ok(()) } else { Err(TokenizerError::NumItems { key, expected, found }) }
}

fn kinds(numbers: &[i32]) -> Result<Vec<TokenKind>, TokenizerError> {
    let kind = |(index, &number): (usize, &i32)| {
        Ok(match number {
            // 0 stands for "undefined", which converters no longer write.
            0 | 1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            found => return Err(TokenizerError::TokenType { index, found }),
        })
    };
    numbers.iter().enumerate().map(kind).collect()
}

/// Without token types, the tokens that the metadata names for a purpose are the special ones.
fn kinds_without_types<S: AsRef<[u8]>>(file: &GgufFile<S>, len: usize) -> Result<Vec<TokenKind>, TokenizerError> {
    let mut kinds = vec![TokenKind::Normal; len];
    for name in ["bos", "eos", "eot", "padding"] {
        if let Some(id) = optional(file.get_u32(&format!("tokenizer.ggml.{name}_token_id")))?
            && let Some(kind) = kinds.get_mut(id as usize)
        {
            *kind = TokenKind::Control;
        }
    }
    Ok(kinds)
}

/// A value that may be missing, but not of another type.
fn optional<T>(value: Result<T, GgufError>) -> Result<Option<T>, GgufError> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(GgufError::MissingKey { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
