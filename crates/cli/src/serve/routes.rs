//! All routes, and what stands before them: keys, counts, headers.

use super::api_error::ApiError;
use super::state::Server;
use super::{
    chat, chunk, completions, compress, docs, embeddings, info, metrics, openapi, page, rerank, tei, tokenize,
};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Router};
use std::net::IpAddr;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// All routes. Those that are in the document are so because `routes!` takes both from what stands over a function.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let (guard, count) = (
        from_fn_with_state(Arc::clone(&server), guard),
        from_fn_with_state(Arc::clone(&server), metrics::count_requests),
    );
    let guarded = |routes, errors| openapi::guarded(routes, errors).layer(guard.clone());
    let texts = OpenApiRouter::new()
        .routes(routes!(embeddings::create))
        .routes(routes!(rerank::create))
        .routes(routes!(chunk::create))
        .routes(routes!(compress::create));
    let v1 = OpenApiRouter::new().routes(routes!(chat::create)).routes(routes!(completions::create));
    let v1 = guarded(v1, &openapi::OF_MODEL)
        .merge(guarded(texts, &openapi::OF_MODEL).layer(count.clone()))
        // Open to all, because clients ask without a key.
        .routes(routes!(info::models));
    let tokens = OpenApiRouter::new()
        .routes(routes!(tokenize::tokenize))
        .routes(routes!(tokenize::detokenize))
        .routes(routes!(info::tokenizer_info));
    let tei_texts = OpenApiRouter::new()
        .routes(routes!(tei::embed))
        .routes(routes!(tei::embed_all))
        .routes(routes!(tei::similarity))
        .routes(routes!(rerank::tei));
    let tei = OpenApiRouter::new().routes(routes!(tei::decode)).routes(routes!(tei::info));
    let tei = guarded(tei, &openapi::OF_TEI).merge(guarded(tei_texts, &openapi::OF_TEI_MODEL).layer(count));
    let (documented, document) = openapi::base()
        .nest("/v1", v1.clone())
        .merge(guarded(tokens, &openapi::OF_TOKENS))
        .merge(tei.layer(from_fn(tei::with_tei_errors)))
        .routes(routes!(info::health))
        .routes(routes!(metrics::metrics))
        .routes(routes!(openapi::get))
        .split_for_parts();
    documented
        // For those who have told their client an address that ends with /v1 already.
        .nest("/v1/v1", v1.into())
        .merge(undocumented())
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no such route"))
        .method_not_allowed_fallback(async || ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "no such method here"))
        .layer(Extension(openapi::document(document, &server)))
        .layer(DefaultBodyLimit::max(server.limits.body_bytes))
        .layer(from_fn_with_state(Arc::clone(&server), metrics::count_rejected))
        .layer(from_fn(nosniff))
        .with_state(server)
}

/// What is for people and not for programs, and another name.
fn undocumented() -> Router<Arc<Server>> {
    Router::new()
        .route("/", get(page::index))
        .route("/page/{name}", get(page::named))
        .route("/docs", get(docs::redirect))
        .route("/docs/", get(docs::index))
        .route("/docs/{name}", get(docs::named))
        .route("/ping", get(info::health))
}

/// Whether a page of another server sends the request, through the browser of somebody who may reach this one: by its
/// origin, or by a name for this machine that is not this machine's (DNS rebinding).
fn is_foreign(headers: &HeaderMap, is_local: bool) -> bool {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    let host = text(HOST).unwrap_or_default();
    let is_other = text(ORIGIN).is_some_and(|origin| origin.split_once("://").is_none_or(|(_, from)| from != host));
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_other || (is_local && !name.is_empty() && name != "localhost" && !is_address)
}

/// Lets a request pass that brings one of the keys, where there are any, unless the server is ending.
async fn guard(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = header.strip_prefix("Bearer ").unwrap_or_default();
    if !server.admits(key) {
        let message = "expected `Authorization: Bearer KEY` with a key of this server";
        return ApiError::new(StatusCode::UNAUTHORIZED, message).into_response();
    }
    if !server.has_keys() && is_foreign(request.headers(), server.limits.is_local) {
        let message = "expected a request of this server's own page, or of no page, to `localhost` or an address, found \
                       another; with --api-key, who brings the key may ask from anywhere";
        return ApiError::new(StatusCode::FORBIDDEN, message).into_response();
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

#[cfg(test)]
mod tests {
    /// Routes that `routes!` adds are in the document; others are those that it says nothing of.
    #[test]
    fn other_routes_are_not_documented_on_purpose() {
        let code = include_str!("routes.rs").split("#[cfg(test)]").next().unwrap();
        let (before, undocumented) = code.split_once("fn undocumented()").unwrap();
        assert!(!before.contains(".route("));
        let routes = undocumented.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        assert!(routes.eq(["/", "/page/{name}", "/docs", "/docs/", "/docs/{name}", "/ping"]));
    }
}
