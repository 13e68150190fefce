//! What goes wrong with a request, as OpenAI's clients expect it: `{"error": {message, type, param, code}}`.

use super::state::Server;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use lapidary::Error;
use lapidary::text::chunk::ChunkError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use utoipa::ToSchema;

/// An answer that is no result.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    /// Seconds after which it may be tried again.
    retry_after: Option<u64>,
    kind: Kind,
}

/// What is wrong, where one status stands for several things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Other,
    Empty,
    Tokenizer,
    Overloaded,
}

/// An error in OpenAI's form.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorReply {
    error: ErrorObject,
}

#[derive(Serialize, ToSchema)]
struct ErrorObject {
    /// What was expected, and what was found.
    message: String,
    r#type: ErrorType,
    /// The field that it is about.
    #[schema(required)]
    param: Option<String>,
    #[schema(required)]
    code: Option<ErrorCode>,
}

#[derive(Serialize, ToSchema)]
enum ErrorType {
    #[serde(rename = "authentication_error")]
    Authentication,
    #[serde(rename = "rate_limit_error")]
    RateLimit,
    #[serde(rename = "server_error")]
    Server,
    #[serde(rename = "invalid_request_error")]
    InvalidRequest,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ErrorCode {
    NotFound,
}

/// An error in the form of Text Embeddings Inference.
#[derive(Serialize, ToSchema)]
pub(crate) struct TeiError {
    /// What was expected, and what was found.
    error: String,
    error_type: TeiErrorType,
}

#[derive(Serialize, ToSchema)]
enum TeiErrorType {
    Empty,
    Tokenizer,
    Validation,
    Backend,
    Overloaded,
    Unhealthy,
    Unauthorized,
}

/// An error in either form.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it names a schema")]
pub(crate) enum EitherError {
    OpenAi(ErrorReply),
    Tei(TeiError),
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, retry_after: None, kind: Kind::Other }
    }

    /// A field that has not what it may have.
    pub(crate) fn field(field: &str, expected: &str, found: impl std::fmt::Display) -> Self {
        let message = format!("{field}: expected {expected}, found {found}");
        Self { param: Some(field.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// With a status for clients that do not try again after 429.
    pub(crate) fn overloaded(status: StatusCode, retry_after: u64) -> Self {
        let message = format!("too much waits already; try again in {retry_after} s");
        Self { retry_after: Some(retry_after), kind: Kind::Overloaded, ..Self::new(status, message) }
    }

    /// Something in here failed.
    pub(crate) fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }

    /// In a word, for counting.
    pub(crate) fn reason(&self) -> &'static str {
        match self.status {
            _ if self.kind == Kind::Overloaded => "overloaded",
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "not_found",
            StatusCode::PAYLOAD_TOO_LARGE => "too_large",
            StatusCode::REQUEST_TIMEOUT => "timeout",
            StatusCode::SERVICE_UNAVAILABLE => "ending",
            status if status.is_server_error() => "failed",
            _ => "invalid",
        }
    }

    /// Nothing where at least something was expected.
    pub(crate) fn empty(field: &str) -> Self {
        Self { kind: Kind::Empty, ..Self::field(field, "at least one token", "none") }
    }

    /// More texts in a request than may be, or none.
    pub(crate) fn num_texts(field: &str, limit: usize, found: usize) -> Self {
        match found {
            0 => Self { kind: Kind::Empty, ..Self::field(field, &format!("1 to {limit} texts"), 0) },
            _ => Self {
                status: StatusCode::PAYLOAD_TOO_LARGE,
                ..Self::field(field, &format!("1 to {limit} texts"), found)
            },
        }
    }

    /// The engine is gone.
    pub(crate) fn gone() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending")
    }

    pub(crate) fn body(&self) -> ErrorReply {
        let r#type = match self.status {
            StatusCode::UNAUTHORIZED => ErrorType::Authentication,
            _ if self.kind == Kind::Overloaded => ErrorType::RateLimit,
            status if status.is_server_error() => ErrorType::Server,
            _ => ErrorType::InvalidRequest,
        };
        let code = (self.status == StatusCode::NOT_FOUND).then_some(ErrorCode::NotFound);
        let (message, param) = (self.message.clone(), self.param.clone());
        ErrorReply { error: ErrorObject { message, r#type, param, code } }
    }

    /// As Text Embeddings Inference answers: its status, its word for it. Its 413 is about sizes alone.
    pub(crate) fn into_tei_response(self) -> Response {
        let (status, error_type) = match (self.status, self.kind) {
            (StatusCode::BAD_REQUEST, Kind::Empty) => (StatusCode::BAD_REQUEST, TeiErrorType::Empty),
            (StatusCode::BAD_REQUEST, Kind::Tokenizer) => (StatusCode::UNPROCESSABLE_ENTITY, TeiErrorType::Tokenizer),
            (StatusCode::BAD_REQUEST, _) => (StatusCode::UNPROCESSABLE_ENTITY, TeiErrorType::Validation),
            (StatusCode::INTERNAL_SERVER_ERROR, _) => (StatusCode::FAILED_DEPENDENCY, TeiErrorType::Backend),
            (StatusCode::TOO_MANY_REQUESTS, _) => (self.status, TeiErrorType::Overloaded),
            (StatusCode::SERVICE_UNAVAILABLE, Kind::Overloaded) => (self.status, TeiErrorType::Overloaded),
            (StatusCode::SERVICE_UNAVAILABLE, _) => (self.status, TeiErrorType::Unhealthy),
            (StatusCode::UNAUTHORIZED, _) => (self.status, TeiErrorType::Unauthorized),
            (status, _) => (status, TeiErrorType::Validation),
        };
        let body = TeiError { error: self.message.clone(), error_type };
        self.response(status, &body)
    }

    fn response(self, status: StatusCode, body: &impl Serialize) -> Response {
        let mut response = (status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        // For layers that want to know what it was, or to say it otherwise.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::Setting { field, expected, found } => Self::field(&field, &expected, found),
            Error::Chunk(ChunkError::Tokenizer(error)) | Error::Tokenizer(error) => {
                Self { kind: Kind::Tokenizer, ..Self::new(StatusCode::BAD_REQUEST, error.to_string()) }
            }
            Error::Chunk(_) | Error::TooLong { .. } | Error::NoChatTemplate | Error::Template(_) => {
                Self::new(StatusCode::BAD_REQUEST, error.to_string())
            }
            _ => Self::failed(error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, body) = (self.status, self.body());
        self.response(status, &body)
    }
}

/// A body of JSON, whatever the request says that it is.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<Server>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, server: &Arc<Server>) -> Result<Self, ApiError> {
        let limit = server.limits.client_timeout;
        let bytes = tokio::time::timeout(limit, Bytes::from_request(request, server)).await.map_err(|_| {
            let message = format!("body: expected within {} s", limit.as_secs_f32());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        let bytes = bytes.map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
        let value = serde_json::from_slice(&bytes);
        Ok(Self(value.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("body: {error}")))?))
    }
}
