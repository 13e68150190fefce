//! `/docs`: Swagger UI over `/openapi.json`. Its files are part of the program.

use super::api_error::ApiError;
use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Redirect, Response};
use std::sync::Arc;
use utoipa_swagger_ui::Config;

/// Its style sheet has pictures in it.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'self'; img-src 'self' data:");

/// To where its files are beside it. Relative: what the server is reached by may stand before it.
pub(crate) async fn redirect() -> Redirect {
    Redirect::to("docs/")
}

pub(crate) async fn index() -> Result<Response, ApiError> {
    file("index.html")
}

pub(crate) async fn named(Path(name): Path<String>) -> Result<Response, ApiError> {
    file(&name)
}

fn file(name: &str) -> Result<Response, ApiError> {
    // Without this a validator elsewhere would be asked.
    let config = Config::from("../openapi.json").validator_url("none").use_base_layout();
    let found = utoipa_swagger_ui::serve(name, Arc::new(config)).map_err(ApiError::failed)?;
    let found = found.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "no such file"))?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_str(&found.content_type).map_err(ApiError::failed)?);
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if found.gzpipped {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok((headers, found.bytes.into_owned()).into_response())
}
