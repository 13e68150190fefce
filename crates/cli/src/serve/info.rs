//! What the server is, and its tokenizer.

use super::state::Server;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use lapidary::layout::TokenId;
use serde_json::{Value, json};
use std::sync::Arc;

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

/// `GET /health`: 503 once the engine has ended, or the server is about to.
pub(crate) async fn health(State(server): State<Arc<Server>>) -> Response {
    let load = server.engine().load();
    let (status, word) = match (server.engine().has_ended(), server.is_draining()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "ended"),
        (_, true) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        _ => (StatusCode::OK, "ok"),
    };
    let body = json!({
        "status": word,
        "running": load.running,
        "waiting": load.waiting,
        "texts": load.texts,
        "kv_pages": { "held": load.pages.0, "all": load.pages.1 },
        "tokens_per_second": server.engine().rate(),
    });
    (status, Json(body)).into_response()
}

/// `GET /tokenizer_info`, as lm-evaluation-harness asks.
pub(crate) async fn tokenizer_info(State(server): State<Arc<Server>>) -> Json<Value> {
    let base = server.model.base();
    let text = |id: Option<TokenId>| id.and_then(|id| base.tokenizer.id_to_token(id));
    let eos = text(base.generation.eos_token_ids.first().copied());
    Json(json!({ "bos_token": text(base.bos()), "eos_token": eos, "pad_token": eos }))
}
