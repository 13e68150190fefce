//! The routes of Text Embeddings Inference, with its bodies, its answers and its errors.

use super::api_error::{ApiError, Body};
use super::input::Input;
use super::openapi::{IdSchema, WidthSchema};
use super::state::{Reading, Server};
use super::texts::{Cut, Side, cosine, encoded, vectors};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::future::try_join_all;
use lapidary::layout::TokenId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::task::block_in_place;
use utoipa::ToSchema;

/// Most numbers of an answer with the states of tokens.
const MAX_STATES: usize = 1 << 24;

/// Errors of these routes, whatever found them, have TEI's form.
pub(crate) async fn with_tei_errors(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<ApiError>() {
        Some(error) => {
            let mut answer = error.into_tei_response();
            for (name, value) in response.headers() {
                // Those of the body are there already, and are others.
                answer.headers_mut().entry(name).or_insert_with(|| value.clone());
            }
            answer.headers_mut().remove(CONTENT_LENGTH);
            answer
        }
        None => response,
    }
}

/// What becomes of long texts.
#[derive(Deserialize, ToSchema, Default)]
pub(crate) struct TextOptions {
    /// Longer texts are cut to what the model can take; without it they are an error.
    #[serde(default, deserialize_with = "super::input::or_default")]
    truncate: bool,
    /// Where they are cut.
    #[serde(default, deserialize_with = "super::input::or_default")]
    truncation_direction: Side,
    /// The name of a prompt before the text; this model has none.
    prompt_name: Option<String>,
}

impl TextOptions {
    fn cut(&self) -> Result<Cut, ApiError> {
        if let Some(name) = &self.prompt_name {
            return Err(ApiError::field("prompt_name", "none: this model has no named prompts", name));
        }
        Ok(Cut { to: self.truncate.then_some(usize::MAX), side: self.truncation_direction })
    }
}

/// Texts to embed.
#[derive(Deserialize, ToSchema)]
pub(crate) struct EmbedBody {
    inputs: Input,
    #[serde(flatten)]
    options: TextOptions,
    /// Vectors of unit length; true unless it says otherwise.
    normalize: Option<bool>,
    #[schema(value_type = Option<WidthSchema>)]
    dimensions: Option<usize>,
}

/// The vectors of texts
#[utoipa::path(
    post,
    path = "/embed",
    tag = "Text Embeddings Inference",
    request_body(
        content = EmbedBody,
        example = json!({ "inputs": ["A man plays a guitar.", "Someone makes music."] }),
    ),
    responses((status = 200, description = "A vector of each text", body = Vec<Vec<f32>>)),
)]
pub(crate) async fn embed(
    State(server): State<Arc<Server>>,
    Body(body): Body<EmbedBody>,
) -> Result<Json<Vec<Vec<f32>>>, ApiError> {
    server.check_dimensions(body.dimensions)?;
    let ids = encoded(&server, "inputs", body.inputs, body.options.cut()?)?;
    Ok(Json(vectors(&server, ids, body.normalize.unwrap_or(true)).await?))
}

/// Texts whose tokens are asked for.
#[derive(Deserialize, ToSchema)]
pub(crate) struct EmbedAllBody {
    inputs: Input,
    #[serde(flatten)]
    options: TextOptions,
}

/// The last hidden states of texts
///
/// Of each token of each text, in the row that the text is embedded in.
#[utoipa::path(
    post,
    path = "/embed_all",
    tag = "Text Embeddings Inference",
    request_body(content = EmbedAllBody, example = json!({ "inputs": "A man plays a guitar." })),
    responses(
        (status = 200, description = "Of each text, of each token", body = Vec<Vec<Vec<f32>>>),
    ),
)]
pub(crate) async fn embed_all(
    State(server): State<Arc<Server>>,
    Body(body): Body<EmbedAllBody>,
) -> Result<Json<Vec<Vec<Vec<f32>>>>, ApiError> {
    let ids = encoded(&server, "inputs", body.inputs, body.options.cut()?)?;
    let (num_tokens, width) =
        (ids.iter().map(Vec::len).sum::<usize>(), server.model.base().decoder.config().hidden_size);
    if num_tokens.saturating_mul(width) > MAX_STATES {
        return Err(ApiError::field("inputs", &format!("at most {} tokens together", MAX_STATES / width), num_tokens));
    }
    let ticket = server.admit(num_tokens)?;
    let one = |ids| server.read(Arc::clone(&ticket), Reading { ids, each_token: true, ..Reading::default() });
    let all = try_join_all(ids.into_iter().map(one)).await?;
    Ok(Json(all.iter().map(|states| states.vector.chunks(width).map(<[f32]>::to_vec).collect()).collect()))
}

/// Texts to compare.
#[derive(Deserialize, ToSchema)]
pub(crate) struct SimilarityBody {
    inputs: SimilarityInputs,
    #[serde(default, deserialize_with = "super::input::or_default")]
    parameters: TextOptions,
}

#[derive(Deserialize, ToSchema)]
struct SimilarityInputs {
    /// The one text.
    source_sentence: String,
    /// The others.
    sentences: Vec<String>,
}

/// The cosine of one text with each of others
#[utoipa::path(
    post,
    path = "/similarity",
    tag = "Text Embeddings Inference",
    request_body(
        content = SimilarityBody,
        example = json!({ "inputs": { "source_sentence": "A man plays a guitar.", "sentences": ["It rains."] } }),
    ),
    responses(
        (
            status = 200,
            description = "The cosines in the order of the others",
            body = Vec<f32>,
            content_type = "application/json",
        ),
    ),
)]
pub(crate) async fn similarity(
    State(server): State<Arc<Server>>,
    Body(body): Body<SimilarityBody>,
) -> Result<Json<Vec<f32>>, ApiError> {
    let SimilarityInputs { source_sentence, sentences } = body.inputs;
    let cut = body.parameters.cut()?;
    Ok(Json(cosines(&server, ("inputs.sentences", sentences), source_sentence, cut).await?))
}

/// The cosine of a text with each of others, which a field has.
pub(crate) async fn cosines(
    server: &Arc<Server>,
    (field, texts): (&str, Vec<String>),
    one: String,
    cut: Cut,
) -> Result<Vec<f32>, ApiError> {
    let mut ids = encoded(server, "query", Input::Text(one), cut)?;
    ids.extend(encoded(server, field, Input::Texts(texts), cut)?);
    let vectors = vectors(server, ids, true).await?;
    Ok(vectors[1..].iter().map(|vector| cosine(&vectors[0], vector)).collect())
}

/// Tokens of texts.
#[derive(Deserialize, ToSchema)]
pub(crate) struct DecodeBody {
    ids: Ids,
    /// Leaves special tokens out; true unless it says otherwise.
    skip_special_tokens: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = IdLists)]
enum Ids {
    /// Of one text.
    #[schema(value_type = Vec<IdSchema>)]
    One(Vec<TokenId>),
    /// Of texts.
    #[schema(value_type = Vec<Vec<IdSchema>>)]
    Many(Vec<Vec<TokenId>>),
}

/// The texts of tokens
#[utoipa::path(
    post,
    path = "/decode",
    tag = "Text Embeddings Inference",
    request_body(content = DecodeBody, example = json!({ "ids": [72, 105] })),
    responses(
        (
            status = 200,
            description = "A text of each list",
            body = Vec<String>,
            content_type = "application/json",
        ),
    ),
)]
pub(crate) async fn decode(
    State(server): State<Arc<Server>>,
    Body(body): Body<DecodeBody>,
) -> Result<Json<Vec<String>>, ApiError> {
    let lists = match body.ids {
        Ids::One(ids) => vec![ids],
        Ids::Many(lists) => lists,
    };
    if lists.is_empty() || lists.len() > server.limits.inputs {
        return Err(ApiError::num_texts("ids", server.limits.inputs, lists.len()));
    }
    let base = server.model.base();
    let vocab_size = base.decoder.config().vocab_size;
    if let Some(id) = lists.iter().flatten().find(|id| **id as usize >= vocab_size) {
        return Err(ApiError::field("ids", &format!("ids below {vocab_size}"), id));
    }
    let skip_special = body.skip_special_tokens.unwrap_or(true);
    let decode = |ids: &Vec<TokenId>| Ok(base.tokenizer.decode(ids, skip_special).map_err(lapidary::Error::from)?);
    Ok(Json(block_in_place(|| lists.iter().map(decode).collect::<Result<_, ApiError>>())?))
}

/// What TEI's clients ask about a server, as far as it means something here.
#[derive(Serialize, ToSchema)]
#[schema(as = TeiInfo)]
pub(crate) struct Info {
    model_id: String,
    model_sha: String,
    model_dtype: &'static str,
    served_model_name: String,
    model_type: ModelType,
    max_concurrent_requests: usize,
    max_input_length: usize,
    max_batch_tokens: usize,
    max_client_batch_size: usize,
    auto_truncate: bool,
    version: &'static str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = TeiModelType)]
struct ModelType {
    embedding: Pooling,
}

#[derive(Serialize, ToSchema)]
#[schema(as = TeiPooling)]
struct Pooling {
    pooling: String,
}

/// What the server is, as Text Embeddings Inference says it
#[utoipa::path(
    get,
    path = "/info",
    tag = "Text Embeddings Inference",
    responses((status = 200, description = "The model and what a request may be", body = Info)),
)]
pub(crate) async fn info(State(server): State<Arc<Server>>) -> Result<Json<Info>, ApiError> {
    Ok(Json(Info {
        model_id: server.name.clone(),
        model_sha: server.model.fingerprint().into_owned(),
        model_dtype: server.limits.weights,
        served_model_name: server.name.clone(),
        model_type: ModelType { embedding: Pooling { pooling: server.model.method().name().into() } },
        max_concurrent_requests: server.limits.connections,
        max_input_length: server.longest_text()?,
        max_batch_tokens: server.limits.batch_tokens,
        max_client_batch_size: server.limits.inputs,
        auto_truncate: false,
        version: env!("CARGO_PKG_VERSION"),
    }))
}
