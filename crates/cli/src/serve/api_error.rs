//! What goes wrong with a request, as OpenAI's clients expect it: `{"error": {message, type, param, code}}`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use lapidary::Error;
use serde::de::DeserializeOwned;
use serde_json::json;

/// An answer that is no result.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    /// Seconds after which it may be tried again.
    retry_after: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, retry_after: None }
    }

    /// A field that has not what it may have.
    pub(crate) fn field(field: &str, expected: &str, found: impl std::fmt::Display) -> Self {
        let message = format!("{field}: expected {expected}, found {found}");
        Self { param: Some(field.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    pub(crate) fn overloaded(retry_after: u64) -> Self {
        let message = format!("too much waits already; try again in {retry_after} s");
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// The engine is gone.
    pub(crate) fn gone() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending")
    }

    pub(crate) fn body(&self) -> serde_json::Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let code = if self.status == StatusCode::NOT_FOUND { json!("not_found") } else { json!(null) };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": code } })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::Setting { field, expected, found } => Self::field(&field, &expected, found),
            Error::TooLong { .. } => {
                Self::new(StatusCode::BAD_REQUEST, format!("{error}; `overflow` may be `truncate` or `compress`"))
            }
            Error::NoChatTemplate | Error::Template(_) | Error::Tokenizer(_) => {
                Self::new(StatusCode::BAD_REQUEST, error.to_string())
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A body of JSON, whatever the request says that it is.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
        let value = serde_json::from_slice(&bytes);
        Ok(Self(value.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("body: {error}")))?))
    }
}
