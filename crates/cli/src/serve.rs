//! One process that chats and embeds: an engine on a thread of its own, HTTP in front of it.

mod api_error;
mod chat;
mod chat_reply;
mod choices;
mod completions;
mod compress;
mod embeddings;
mod info;
mod input;
mod overflow;
mod prompt;
mod replies;
mod speaker;
mod state;
mod stream;

pub(crate) use state::{Limits, Server, run_engine};

use api_error::ApiError;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Router, http::StatusCode};
use std::sync::Arc;

/// All routes.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let guarded = Router::new()
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/compress", post(compress::create))
        .route("/tokenize", post(info::tokenize))
        .route("/detokenize", post(info::detokenize))
        .route("/tokenizer_info", get(info::tokenizer_info))
        .layer(from_fn_with_state(Arc::clone(&server), check_key));
    let open = Router::new().route("/v1/models", get(info::models)).route("/health", get(info::health));
    guarded
        .merge(open)
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no such route"))
        .method_not_allowed_fallback(async || ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "no such method here"))
        .layer(DefaultBodyLimit::max(server.limits.body_bytes))
        .with_state(server)
}

/// Lets a request pass that brings one of the keys, where there are any.
async fn check_key(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = header.strip_prefix("Bearer ").unwrap_or_default();
    if server.admits(key) {
        return next.run(request).await;
    }
    ApiError::new(StatusCode::UNAUTHORIZED, "expected `Authorization: Bearer KEY` with a key of this server")
        .into_response()
}
