//! All routes, and what stands before them: keys, counts, headers.

use super::api_error::ApiError;
use super::state::Server;
use super::{chat, chunk, completions, compress, embeddings, info, metrics, page, rerank, tei, tokenize};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use std::sync::Arc;

/// All routes.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let (guard, count) = (
        from_fn_with_state(Arc::clone(&server), guard),
        from_fn_with_state(Arc::clone(&server), metrics::count_requests),
    );
    let texts = Router::new()
        .route("/embeddings", post(embeddings::create))
        .route("/rerank", post(rerank::create))
        .route("/chunk", post(chunk::create))
        .route("/compress", post(compress::create))
        .layer(guard.clone())
        .layer(count.clone());
    let v1 = Router::new()
        .route("/chat/completions", post(chat::create))
        .route("/completions", post(completions::create))
        .layer(guard.clone())
        .merge(texts)
        // Open to all, because clients ask without a key.
        .route("/models", get(info::models));
    let tokens = Router::new()
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(info::tokenizer_info))
        .layer(guard.clone());
    let tei_texts = Router::new()
        .route("/embed", post(tei::embed))
        .route("/embed_all", post(tei::embed_all))
        .route("/similarity", post(tei::similarity))
        .route("/rerank", post(rerank::tei))
        .layer(guard.clone())
        .layer(count);
    let tei = Router::new().route("/decode", post(tei::decode)).route("/info", get(tei::info)).layer(guard);
    Router::new()
        .nest("/v1", v1.clone())
        // For those who have told their client an address that ends with /v1 already.
        .nest("/v1/v1", v1)
        .merge(tokens)
        .merge(tei.merge(tei_texts).layer(from_fn(tei::with_tei_errors)))
        .route("/", get(page::index))
        .route("/page/{name}", get(page::named))
        .route("/health", get(info::health))
        .route("/ping", get(info::health))
        .route("/metrics", get(metrics::metrics))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no such route"))
        .method_not_allowed_fallback(async || ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "no such method here"))
        .layer(DefaultBodyLimit::max(server.limits.body_bytes))
        .layer(from_fn_with_state(Arc::clone(&server), metrics::count_rejected))
        .layer(from_fn(nosniff))
        .with_state(server)
}

/// Lets a request pass that brings one of the keys, where there are any, unless the server is ending.
async fn guard(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = header.strip_prefix("Bearer ").unwrap_or_default();
    if !server.admits(key) {
        let message = "expected `Authorization: Bearer KEY` with a key of this server";
        return ApiError::new(StatusCode::UNAUTHORIZED, message).into_response();
    }
    if server.is_draining() {
        let mut response = ApiError::gone().into_response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let mut response = next.run(request).await;
    if let Ok(fingerprint) = HeaderValue::from_str(&server.model.fingerprint()) {
        response.headers_mut().insert("x-model-fingerprint", fingerprint);
    }
    response
}

/// Nothing here is what it is not said to be.
async fn nosniff(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
