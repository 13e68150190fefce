//! `POST /v1/chunk`: a text in pieces of at most so many of this model's tokens, with their vectors if asked for.

use super::api_error::{ApiError, Body};
use super::openapi::NameSchema;
use super::state::Server;
use axum::Json;
use axum::extract::State;
use futures_util::future::try_join_all;
use lapidary::layout::TokenId;
use lapidary::text::chunk::{Chunk, ChunkOptions, chunks};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::task::block_in_place;
use utoipa::ToSchema;

const DEFAULT_MAX_TOKENS: usize = 128;

/// A text to be cut.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChunkRequest {
    input: String,
    #[schema(value_type = Option<NameSchema>)]
    model: Option<String>,
    /// Most tokens of a chunk, encoded by itself; 128 unless it says otherwise.
    #[schema(minimum = 1)]
    max_tokens: Option<usize>,
    /// Tokens at the end of a chunk with which the next begins; no more than half of `max_tokens`.
    #[serde(default, deserialize_with = "super::input::or_default")]
    overlap: usize,
    /// The vector of each chunk too, as `/v1/embeddings` gives it.
    #[serde(default, deserialize_with = "super::input::or_default")]
    embed: bool,
}

/// The chunks in the order of the text; without overlap, put together, they are it.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChunkReply {
    #[schema(pattern = "^list$")]
    object: &'static str,
    model: String,
    chunks: Vec<ChunkOfText>,
}

/// A piece of the text.
#[derive(Serialize, ToSchema)]
struct ChunkOfText {
    text: String,
    /// Its place in the text, in bytes.
    start: usize,
    end: usize,
    /// Encoded by itself.
    num_tokens: usize,
    /// Where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<Vec<f32>>,
}

/// Most chunks of a text.
const MAX_CHUNKS: usize = 1 << 16;

/// Cuts a text into chunks
#[utoipa::path(
    post,
    path = "/chunk",
    tag = "Texts",
    operation_id = "chunk",
    request_body(
        content = ChunkRequest,
        example = json!({ "input": "A man plays a guitar. Someone makes music.", "max_tokens": 8 }),
    ),
    responses(
        (status = 200, description = "The chunks in the order of the text", body = ChunkReply),
    ),
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(request): Body<ChunkRequest>,
) -> Result<Json<ChunkReply>, ApiError> {
    server.check_model(request.model.as_deref())?;
    let longest = server.longest_text()?;
    let max_tokens = request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS.min(longest));
    if max_tokens == 0 || max_tokens > longest {
        return Err(ApiError::field("max_tokens", &format!("1 to {longest}, as the model can take"), max_tokens));
    }
    let tokenizer = &server.model.base().tokenizer;
    let options = ChunkOptions { max_tokens, overlap: request.overlap };
    let text = &request.input;
    let found = block_in_place(|| chunks(tokenizer, text, options)).map_err(lapidary::Error::from)?;
    if found.len() > MAX_CHUNKS {
        return Err(ApiError::field("input", &format!("a text of at most {MAX_CHUNKS} chunks"), found.len()));
    }
    let mut vectors = Vec::new();
    if request.embed {
        if found.len() > server.limits.inputs {
            let expected = format!("a text of at most {} chunks, with embed", server.limits.inputs);
            return Err(ApiError::field("input", &expected, found.len()));
        }
        let encode = |chunk: &Chunk| tokenizer.encode(&text[chunk.range.clone()]);
        let ids: Vec<Vec<TokenId>> =
            block_in_place(|| found.iter().map(encode).collect::<Result<_, _>>()).map_err(lapidary::Error::from)?;
        let ticket = server.admit(ids.iter().map(Vec::len).sum())?;
        vectors = try_join_all(ids.into_iter().map(|ids| server.embed(Arc::clone(&ticket), ids))).await?;
    }
    let mut vectors = vectors.into_iter();
    let chunks = (found.into_iter())
        .map(|Chunk { range, num_tokens }| ChunkOfText {
            text: text[range.clone()].to_owned(),
            start: range.start,
            end: range.end,
            num_tokens,
            embedding: vectors.next(),
        })
        .collect();
    Ok(Json(ChunkReply { object: "list", model: server.name.clone(), chunks }))
}
