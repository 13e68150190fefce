//! `POST /v1/embeddings`.

use super::api_error::{ApiError, Body};
use super::input::Input;
use super::state::Server;
use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use futures_util::future::try_join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::block_in_place;

#[derive(Deserialize)]
pub(crate) struct EmbeddingsRequest {
    input: Input,
    model: Option<String>,
    dimensions: Option<usize>,
    #[serde(default)]
    encoding_format: EncodingFormat,
    /// Longer texts are cut to this many tokens; -1: to what the model can take (vLLM).
    truncate_prompt_tokens: Option<i64>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(request): Body<EmbeddingsRequest>,
) -> Result<Json<Value>, ApiError> {
    server.check_model(request.model.as_deref())?;
    server.check_dimensions(request.dimensions)?;
    let tokenizer = &server.model.base().tokenizer;
    let mut inputs = block_in_place(|| request.input.ids(|text| Ok(tokenizer.encode(text)?)))?;
    if inputs.is_empty() || inputs.len() > server.limits.inputs {
        let expected = format!("1 to {} texts", server.limits.inputs);
        return Err(ApiError::field("input", &expected, inputs.len()));
    }
    if let Some(limit) = request.truncate_prompt_tokens {
        let most = server.longest_text()?;
        let limit = usize::try_from(limit).unwrap_or(most).min(most);
        let truncated = inputs.iter_mut().filter(|ids| ids.len() > limit).map(|ids| ids.truncate(limit)).count();
        server.metrics.truncations.inc_by(truncated as u64);
    }
    let num_tokens: usize = inputs.iter().map(Vec::len).sum();
    let ticket = server.admit(num_tokens)?;
    let vectors = try_join_all(inputs.into_iter().map(|ids| server.embed(Arc::clone(&ticket), ids))).await?;
    let data: Vec<Value> = (vectors.iter().enumerate())
        .map(|(index, vector)| {
            let embedding = match request.encoding_format {
                EncodingFormat::Float => json!(vector),
                EncodingFormat::Base64 => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    json!(base64::engine::general_purpose::STANDARD.encode(bytes))
                }
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let usage = json!({ "prompt_tokens": num_tokens, "total_tokens": num_tokens });
    Ok(Json(json!({ "object": "list", "data": data, "model": server.name, "usage": usage })))
}
