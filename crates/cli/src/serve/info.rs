//! What the server is, and its tokenizer.

use super::api_error::{ApiError, Body};
use super::state::Server;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use lapidary::layout::TokenId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::block_in_place;

/// `GET /v1/models`; open to all, because clients ask without a key.
pub(crate) async fn models(State(server): State<Arc<Server>>) -> Json<Value> {
    Json(json!({
        "object": "list",
        "data": [{
            "id": server.name,
            "object": "model",
            "created": server.created,
            "owned_by": "lapidary",
            "max_model_len": server.longest_row,
            "fingerprint": server.model.fingerprint(),
        }],
    }))
}

/// `GET /health`: 503 once the engine has ended.
pub(crate) async fn health(State(server): State<Arc<Server>>) -> Response {
    let load = server.engine().load();
    let body = json!({
        "status": if server.engine().has_ended() { "ended" } else { "ok" },
        "running": load.running,
        "waiting": load.waiting,
        "texts": load.texts,
        "kv_pages": { "held": load.pages.0, "all": load.pages.1 },
    });
    let status = if server.engine().has_ended() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(body)).into_response()
}

/// The text is `prompt` (vLLM), `content` (llama.cpp) or `inputs` (TEI); the answer has that program's form.
#[derive(Deserialize)]
pub(crate) struct TokenizeRequest {
    prompt: Option<String>,
    content: Option<String>,
    inputs: Option<String>,
    add_special_tokens: Option<bool>,
}

pub(crate) async fn tokenize(
    State(server): State<Arc<Server>>,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let base = server.model.base();
    let encode = |text: &str, with_bos: bool| -> Result<Vec<TokenId>, ApiError> {
        let bos = with_bos.then(|| base.bos()).flatten();
        let ids = base.tokenizer.encode_with_special(text).map_err(lapidary::Error::from)?;
        Ok(bos.into_iter().chain(ids).collect())
    };
    let with_bos = request.add_special_tokens.unwrap_or(true);
    if let Some(prompt) = request.prompt {
        let ids = block_in_place(|| encode(&prompt, with_bos))?;
        return Ok(Json(json!({ "count": ids.len(), "max_model_len": server.longest_row, "tokens": ids })));
    }
    if let Some(content) = request.content {
        let with_bos = request.add_special_tokens.unwrap_or(false);
        return Ok(Json(json!({ "tokens": block_in_place(|| encode(&content, with_bos))? })));
    }
    let Some(inputs) = request.inputs else {
        return Err(ApiError::field("body", "one of prompt, content, inputs", "none"));
    };
    let token = |id: TokenId| {
        let text = base.tokenizer.decode(&[id], false).unwrap_or_default();
        json!({ "id": id, "text": text, "special": base.tokenizer.is_special(id) })
    };
    let tokens =
        block_in_place(|| Ok::<_, ApiError>(encode(&inputs, with_bos)?.into_iter().map(token).collect::<Value>()))?;
    Ok(Json(json!([tokens])))
}

#[derive(Deserialize)]
pub(crate) struct DetokenizeRequest {
    tokens: Vec<TokenId>,
}

pub(crate) async fn detokenize(
    State(server): State<Arc<Server>>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let base = server.model.base();
    let vocab_size = base.decoder.config().vocab_size;
    if let Some(id) = request.tokens.iter().find(|id| **id as usize >= vocab_size) {
        return Err(ApiError::field("tokens", &format!("ids below {vocab_size}"), id));
    }
    let decoded = block_in_place(|| base.tokenizer.decode(&request.tokens, false));
    let text = decoded.map_err(lapidary::Error::from)?;
    Ok(Json(json!({ "prompt": text })))
}

pub(crate) async fn tokenizer_info(State(server): State<Arc<Server>>) -> Json<Value> {
    let base = server.model.base();
    let text = |id: Option<TokenId>| id.and_then(|id| base.tokenizer.id_to_token(id));
    let eos = text(base.generation.eos_token_ids.first().copied());
    Json(json!({ "bos_token": text(base.bos()), "eos_token": eos, "pad_token": eos }))
}
