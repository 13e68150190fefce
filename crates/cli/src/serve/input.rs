//! What requests of both kinds are about.

use super::api_error::ApiError;
use super::openapi::IdSchema;
use super::state::Server;
use lapidary::Error;
use lapidary::layout::TokenId;
use serde::{Deserialize, Deserializer};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

/// What a field has, or its default where it is null: clients write so what they do not set.
///
/// # Errors
/// When the field has something else.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(field: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(field)?.unwrap_or_default())
}

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
    /// The tokens of each, which a field has; `encode` makes them of a text.
    ///
    /// # Errors
    /// 400 when a text cannot be encoded, for ids where the server takes none, or outside the vocabulary.
    pub(crate) fn ids(
        self,
        server: &Server,
        field: &str,
        encode: impl Fn(&str) -> Result<Vec<TokenId>, Error>,
    ) -> Result<Vec<Vec<TokenId>>, ApiError> {
        match self {
            Self::Text(text) => Ok(vec![encode(&text)?]),
            Self::Texts(texts) => Ok(texts.iter().map(|text| encode(text)).collect::<Result<_, _>>()?),
            Self::Ids(ids) => Ok(vec![checked(server, field, ids)?]),
            Self::IdLists(lists) => lists.into_iter().map(|ids| checked(server, field, ids)).collect(),
        }
    }
}

/// Ids that the server takes.
fn checked(server: &Server, field: &str, ids: Vec<TokenId>) -> Result<Vec<TokenId>, ApiError> {
    const HINT: &str = "a client that sends another tokenizer's ids has to send texts \
                        (LangChain: check_embedding_ctx_length=False)";
    if server.limits.reject_token_ids {
        return Err(ApiError::field(field, "texts (--reject-token-ids)", format!("token ids; {HINT}")));
    }
    let vocab_size = server.model.base().decoder.config().vocab_size;
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        None => Ok(ids),
        Some(id) => {
            let expected = format!("ids of this model's tokenizer, below {vocab_size}");
            Err(ApiError::field(field, &expected, format!("{id}; {HINT}")))
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
    /// As [`Input::ids`].
    ///
    /// # Errors
    /// As [`Input::ids`].
    pub(crate) fn ids(
        self,
        server: &Server,
        field: &str,
        encode: impl Fn(&str) -> Result<Vec<TokenId>, Error>,
    ) -> Result<Vec<TokenId>, ApiError> {
        match self {
            Self::Text(text) => Ok(encode(&text)?),
            Self::Ids(ids) => checked(server, field, ids),
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
