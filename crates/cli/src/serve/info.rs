//! What the server is, and its tokenizer.

use super::state::Server;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use lapidary::layout::TokenId;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The models of the server: one.
#[derive(Serialize, ToSchema)]
pub(crate) struct Models {
    #[schema(pattern = "^list$")]
    object: &'static str,
    data: [Model; 1],
}

#[derive(Serialize, ToSchema)]
struct Model {
    /// Its name in requests.
    id: String,
    #[schema(pattern = "^model$")]
    object: &'static str,
    /// When the server was started, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
    /// Most tokens of a conversation with its reply.
    max_model_len: usize,
    /// Of its weights.
    fingerprint: String,
}

/// The model of this server
#[utoipa::path(
    get,
    path = "/models",
    tag = "Server",
    responses((status = 200, description = "A list of one", body = Models)),
)]
pub(crate) async fn models(State(server): State<Arc<Server>>) -> Json<Models> {
    let model = Model {
        id: server.name.clone(),
        object: "model",
        created: server.created,
        owned_by: "lapidary",
        max_model_len: server.longest_row,
        fingerprint: server.model.fingerprint().into_owned(),
    };
    Json(Models { object: "list", data: [model] })
}

/// How the server does.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    status: Status,
    /// Conversations that have run in part.
    running: usize,
    /// Conversations that wait for pages.
    waiting: usize,
    /// Texts that wait for a pass.
    texts: usize,
    kv_pages: Pages,
    /// Of the last passes.
    tokens_per_second: usize,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = HealthStatus)]
enum Status {
    Ok,
    /// Asked to end, it answers what is on its way.
    Draining,
    /// The engine has ended.
    Ended,
}

/// Pages of keys and values.
#[derive(Serialize, ToSchema)]
#[schema(as = KvPages)]
struct Pages {
    held: usize,
    all: usize,
}

/// How the server does
#[utoipa::path(
    get,
    path = "/health",
    tag = "Server",
    responses(
        (status = 200, description = "It answers", body = Health),
        (status = 503, description = "It is ending, or its engine has ended", body = Health),
    ),
)]
pub(crate) async fn health(State(server): State<Arc<Server>>) -> (StatusCode, Json<Health>) {
    let load = server.engine().load();
    let (code, status) = match (server.engine().has_ended(), server.is_draining()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, Status::Ended),
        (_, true) => (StatusCode::SERVICE_UNAVAILABLE, Status::Draining),
        _ => (StatusCode::OK, Status::Ok),
    };
    let health = Health {
        status,
        running: load.running,
        waiting: load.waiting,
        texts: load.texts,
        kv_pages: Pages { held: load.pages.0, all: load.pages.1 },
        tokens_per_second: server.engine().rate(),
    };
    (code, Json(health))
}

/// Special tokens by their texts.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenizerInfo {
    bos_token: Option<String>,
    eos_token: Option<String>,
    /// That of `eos_token`.
    pad_token: Option<String>,
}

/// Special tokens of the tokenizer, as lm-evaluation-harness asks
#[utoipa::path(
    get,
    path = "/tokenizer_info",
    tag = "Tokens",
    responses((status = 200, description = "Those that there are", body = TokenizerInfo)),
)]
pub(crate) async fn tokenizer_info(State(server): State<Arc<Server>>) -> Json<TokenizerInfo> {
    let base = server.model.base();
    let text = |id: Option<TokenId>| id.and_then(|id| base.tokenizer.id_to_token(id));
    let eos_token = text(base.generation.eos_token_ids.first().copied());
    Json(TokenizerInfo { bos_token: text(base.bos()), pad_token: eos_token.clone(), eos_token })
}
