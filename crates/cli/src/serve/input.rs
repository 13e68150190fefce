//! What requests of both kinds are about.

use super::api_error::ApiError;
use super::openapi::IdSchema;
use super::state::Server;
use lapidary::Error;
use lapidary::layout::TokenId;
use serde::Deserialize;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

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
    /// # Errors
    /// 400 for ids where the server takes none, or outside the vocabulary.
    pub(crate) fn check_ids(&self, server: &Server, field: &str) -> Result<(), ApiError> {
        const HINT: &str = "a client that sends another tokenizer's ids has to send texts \
                            (LangChain: check_embedding_ctx_length=False)";
        let vocab_size = server.model.base().decoder.config().vocab_size;
        let lists = match self {
            Self::Text(_) | Self::Texts(_) => return Ok(()),
            Self::Ids(ids) => std::slice::from_ref(ids),
            Self::IdLists(lists) => lists,
        };
        if server.limits.reject_token_ids {
            return Err(ApiError::field(field, "texts (--reject-token-ids)", format!("token ids; {HINT}")));
        }
        match lists.iter().flatten().find(|id| **id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => {
                let expected = format!("ids of this model's tokenizer, below {vocab_size}");
                Err(ApiError::field(field, &expected, format!("{id}; {HINT}")))
            }
        }
    }

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

/// A text that is not empty.
fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).min_length(Some(1))
}

/// A list that is not empty.
fn list(of: impl Into<RefOr<Schema>>) -> ArrayBuilder {
    ArrayBuilder::new().items(of.into()).min_items(Some(1))
}

fn ids() -> ArrayBuilder {
    list(Ref::from_schema_name(IdSchema::name()))
}

type Schemas = Vec<(String, RefOr<Schema>)>;

impl PartialSchema for Input {
    fn schema() -> RefOr<Schema> {
        let all = OneOfBuilder::new().description(Some("Texts, or tokens of this model's tokenizer."));
        all.item(text()).item(list(text())).item(ids()).item(list(ids())).into()
    }
}

impl ToSchema for Input {
    fn schemas(schemas: &mut Schemas) {
        schemas.push((IdSchema::name().into(), IdSchema::schema()));
    }
}

impl PartialSchema for OneInput {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new().description(Some("One text, or its tokens.")).item(text()).item(ids()).into()
    }
}

impl ToSchema for OneInput {
    fn schemas(schemas: &mut Schemas) {
        Input::schemas(schemas);
    }
}
