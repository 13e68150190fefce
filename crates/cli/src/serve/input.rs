//! What requests of both kinds are about.

use lapidary::Error;
use lapidary::layout::TokenId;
use serde::Deserialize;

/// Texts, or tokens of this model's tokenizer.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Input {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<TokenId>),
    IdLists(Vec<Vec<TokenId>>),
}

impl Input {
    /// The tokens of each; `encode` makes them of a text.
    ///
    /// # Errors
    /// When a text cannot be encoded.
    pub(crate) fn ids(self, encode: impl Fn(&str) -> Result<Vec<TokenId>, Error>) -> Result<Vec<Vec<TokenId>>, Error> {
        match self {
            Self::Text(text) => Ok(vec![encode(&text)?]),
            Self::Texts(texts) => texts.iter().map(|text| encode(text)).collect(),
            Self::Ids(ids) => Ok(vec![ids]),
            Self::IdLists(lists) => Ok(lists),
        }
    }
}

/// One text, or its tokens.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum OneInput {
    Text(String),
    Ids(Vec<TokenId>),
}

impl OneInput {
    /// Its tokens; `encode` makes them of a text.
    ///
    /// # Errors
    /// When a text cannot be encoded.
    pub(crate) fn ids(self, encode: impl Fn(&str) -> Result<Vec<TokenId>, Error>) -> Result<Vec<TokenId>, Error> {
        match self {
            Self::Text(text) => encode(&text),
            Self::Ids(ids) => Ok(ids),
        }
    }
}
