//! Texts in the order of how close they are to a query: `/rerank` as TEI has it, `/v1/rerank` as Jina's and vLLM's clients ask.

use super::api_error::{ApiError, Body};
use super::openapi::NameSchema;
use super::state::Server;
use super::tei::cosines;
use super::texts::{Cut, Side};
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// Texts to be ranked.
#[derive(Deserialize, ToSchema)]
pub(crate) struct TeiRerank {
    query: String,
    texts: Vec<String>,
    /// The texts too.
    #[serde(default, deserialize_with = "super::input::or_default")]
    return_text: bool,
    /// Accepted, and of no effect: a cosine is as raw as it gets.
    #[serde(default, rename = "raw_scores")]
    _raw_scores: bool,
    /// Longer texts are cut to what the model can take; without it they are an error.
    #[serde(default, deserialize_with = "super::input::or_default")]
    truncate: bool,
    /// Where they are cut.
    #[serde(default, deserialize_with = "super::input::or_default")]
    truncation_direction: Side,
}

/// A text in its place.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ranked {
    /// Of the text in the request.
    index: usize,
    /// The cosine of the two vectors, from -1 to 1.
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// Ranks texts by how close they are to a query
///
/// The model is no cross-encoder; a score is the cosine of the vectors of query and text, from -1 to 1.
#[utoipa::path(
    post,
    path = "/rerank",
    tag = "Text Embeddings Inference",
    operation_id = "tei_rerank",
    request_body(
        content = TeiRerank,
        example = json!({ "query": "Who makes music?", "texts": ["A man plays a guitar.", "It rains."] }),
    ),
    responses((status = 200, description = "The texts, the closest first", body = Vec<Ranked>)),
)]
pub(crate) async fn tei(
    State(server): State<Arc<Server>>,
    Body(body): Body<TeiRerank>,
) -> Result<Json<Vec<Ranked>>, ApiError> {
    let mut texts = body.texts.clone();
    let cut = Cut { to: body.truncate.then_some(usize::MAX), side: body.truncation_direction };
    let scores = cosines(&server, ("texts", body.texts), body.query, cut).await?;
    let ranked = |(index, score)| {
        let text = body.return_text.then(|| std::mem::take(&mut texts[index]));
        Ranked { index, score, text }
    };
    Ok(Json(by_score(scores).into_iter().map(ranked).collect()))
}

/// Documents to be ranked.
#[derive(Deserialize, ToSchema)]
pub(crate) struct RerankRequest {
    #[schema(value_type = Option<NameSchema>)]
    model: Option<String>,
    query: String,
    documents: Vec<Document>,
    /// So many of the closest; all, unless it says otherwise.
    top_n: Option<usize>,
    /// The documents too.
    #[serde(default, deserialize_with = "super::input::or_default")]
    return_documents: bool,
    /// Longer texts are cut to this many tokens; -1: to what the model can take. Without it they are an error.
    truncate_prompt_tokens: Option<i64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Document {
    /// A text.
    Plain(String),
    /// A text by its name.
    Object { text: String },
}

/// The documents, the closest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct Reranked {
    id: String,
    model: String,
    results: Vec<RerankResult>,
}

#[derive(Serialize, ToSchema)]
struct RerankResult {
    /// Of the document in the request.
    index: usize,
    /// The cosine of the two vectors, from -1 to 1.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<DocumentText>,
}

#[derive(Serialize, ToSchema)]
struct DocumentText {
    text: String,
}

/// Ranks documents by how close they are to a query
///
/// The model is no cross-encoder; a score is the cosine of the vectors of query and document, from -1 to 1.
#[utoipa::path(
    post,
    path = "/rerank",
    tag = "Texts",
    operation_id = "rerank",
    request_body(
        content = RerankRequest,
        example = json!({ "query": "Who makes music?", "documents": ["A man plays a guitar.", "It rains."] }),
    ),
    responses((status = 200, description = "The documents, the closest first", body = Reranked)),
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(request): Body<RerankRequest>,
) -> Result<Json<Reranked>, ApiError> {
    server.check_model(request.model.as_deref())?;
    let to = request.truncate_prompt_tokens.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let text = |document| match document {
        Document::Plain(text) | Document::Object { text } => text,
    };
    let mut texts: Vec<String> = request.documents.into_iter().map(text).collect();
    let cut = Cut { to, side: Side::Right };
    let scores = cosines(&server, ("documents", texts.clone()), request.query, cut).await?;
    let result = |(index, relevance_score)| {
        let document = request.return_documents.then(|| DocumentText { text: std::mem::take(&mut texts[index]) });
        RerankResult { index, relevance_score, document }
    };
    let top_n = request.top_n.unwrap_or(scores.len());
    Ok(Json(Reranked {
        id: format!("rerank-{:032x}", rand::random::<u128>()),
        model: server.name.clone(),
        results: by_score(scores).into_iter().take(top_n).map(result).collect(),
    }))
}

/// Numbers and scores, the highest score first.
fn by_score(scores: Vec<f32>) -> Vec<(usize, f32)> {
    let mut all: Vec<(usize, f32)> = scores.into_iter().enumerate().collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}
