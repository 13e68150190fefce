//! `/openapi.json`: what the routes and their types say of themselves, and what only the server knows.

use super::api_error::{ErrorReply, TeiError};
use super::chat_reply::ChatChunk;
use super::state::Server;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde_json::json;
use std::sync::Arc;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{AllOfBuilder, Object, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ArrayBuilder, ContentBuilder, Ref, RefOr};
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;

/// What the document calls a key of the server.
const KEY: &str = "key";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lapidary",
        description = "One model that chats and embeds, from one set of weights in one process, for the clients of \
                       OpenAI, vLLM, Text Embeddings Inference and llama.cpp."
    ),
    tags(
        (name = "Chat", description = "Replies of the model"),
        (name = "Texts", description = "Vectors of texts, and what is made of them"),
        (name = "Tokens", description = "Texts to tokens and back"),
        (name = "Text Embeddings Inference", description = "The routes of that program, with its bodies and errors"),
        (name = "Server", description = "The server itself")
    ),
    components(schemas(ChatChunk, ErrorReply, TeiError))
)]
struct Base;

/// A token of this model's tokenizer.
#[derive(ToSchema)]
#[schema(as = TokenId)]
#[expect(dead_code, reason = "it names a schema")]
pub(crate) struct IdSchema(u32);

/// The name of this server's model. None: that one.
#[derive(ToSchema)]
#[schema(as = ModelName)]
#[expect(dead_code, reason = "it names a schema")]
pub(crate) struct NameSchema(String);

/// The width of the vectors: the model was trained for no other.
#[derive(ToSchema)]
#[schema(as = Dimensions)]
#[expect(dead_code, reason = "it names a schema")]
pub(crate) struct WidthSchema(u32);

/// A list that has to be empty.
pub(crate) fn nothing() -> Schema {
    let list = ArrayBuilder::new().schema_type(SchemaType::from_iter([Type::Array, Type::Null])).max_items(Some(0));
    list.description(Some("None, or an empty list: this server calls no tools.")).into()
}

/// The document, for a server: which tokens there are, what the model is called, how wide its vectors are.
pub(crate) fn document(mut api: utoipa::openapi::OpenApi, server: &Server) -> Document {
    let config = server.model.base().decoder.config();
    let components = api.components.get_or_insert_default();
    let mut set = |name: &str, change: &dyn Fn(&mut Object)| {
        if let Some(RefOr::T(Schema::Object(object))) = components.schemas.get_mut(name) {
            change(object);
        }
    };
    set("TokenId", &|id| id.maximum = Some(config.vocab_size.saturating_sub(1).into()));
    set("ModelName", &|name| name.enum_values = Some(vec![json!(server.name)]));
    set("Dimensions", &|width| width.enum_values = Some(vec![json!(config.hidden_size)]));
    // It has one of them; what is made of the type knows only that it need not have the other.
    if let Some(request) = components.schemas.remove("EmbeddingsRequest") {
        let with = |name: &str| ObjectBuilder::new().required(name);
        let either = OneOfBuilder::new().item(with("input")).item(with("messages"));
        components.schemas.insert("EmbeddingsRequest".into(), AllOfBuilder::new().item(request).item(either).into());
    }
    let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let key = key.description(Some("One of the server's keys, where it was started with any"));
    components.add_security_scheme(KEY, SecurityScheme::Http(key.build()));
    Document(Arc::new(api))
}

/// Routes to be added to, with what the document says of all of them.
pub(crate) fn base() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::with_openapi(Base::openapi())
}

/// The document of a server.
#[derive(Clone)]
pub(crate) struct Document(Arc<utoipa::openapi::OpenApi>);

/// This document
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "Server",
    operation_id = "openapi",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = Object)),
)]
pub(crate) async fn get(Extension(document): Extension<Document>) -> Response {
    Json(&*document.0).into_response()
}

/// The errors that some routes may answer with, in the form of one program.
pub(crate) struct Errors {
    schema: &'static str,
    /// On all of them.
    all: &'static [u16],
    /// On those that read a body.
    with_body: &'static [u16],
}

const OPENAI: Errors = Errors { schema: "ErrorReply", all: &[401, 403, 503], with_body: &[400, 408, 413, 500] };
const TEI: Errors = Errors { schema: "TeiError", all: &[401, 403, 424, 503], with_body: &[400, 408, 413, 422] };

/// Of routes that run the model.
pub(crate) const OF_MODEL: Errors = Errors { with_body: &[400, 404, 408, 413, 429, 500], ..OPENAI };
/// Of routes that know its tokenizer alone.
pub(crate) const OF_TOKENS: Errors = OPENAI;
/// Of routes of Text Embeddings Inference that run the model.
pub(crate) const OF_TEI_MODEL: Errors = Errors { with_body: &[400, 408, 413, 422, 429], ..TEI };
/// Of its other routes.
pub(crate) const OF_TEI: Errors = TEI;

/// Says of routes that they ask for a key, and what errors they may answer with.
pub(crate) fn guarded(mut routes: OpenApiRouter<Arc<Server>>, errors: &Errors) -> OpenApiRouter<Arc<Server>> {
    for path in routes.get_openapi_mut().paths.paths.values_mut() {
        for operation in [&mut path.get, &mut path.post].into_iter().flatten() {
            operation.security = Some(vec![SecurityRequirement::new(KEY, <[&str; 0]>::default())]);
            add(operation, errors.schema, errors.all);
            if operation.request_body.is_some() {
                add(operation, errors.schema, errors.with_body);
            }
        }
    }
    routes
}

/// Says what errors an operation may answer with; what it says itself stays.
fn add(operation: &mut Operation, schema: &str, codes: &[u16]) {
    for &code in codes {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
        let mut response = ResponseBuilder::new().description(meaning(code)).content("application/json", content);
        if code == 429 {
            let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
            let header = HeaderBuilder::new().schema(Some(seconds)).description(Some("Seconds"));
            response = response.header(RETRY_AFTER.as_str(), header.build());
        }
        operation.responses.responses.entry(code.to_string()).or_insert_with(|| response.build().into());
    }
}

fn meaning(code: u16) -> &'static str {
    match code {
        400 => "The body is none that can be answered; `message` says what was expected",
        401 => "No key of this server",
        403 => "A page of another server asks",
        404 => "Another model than this server's",
        408 => "The body did not come in time",
        413 => "The body has too many bytes, or too many texts",
        422 => "A field has not what it may have",
        424 => "The engine failed",
        429 => "Too much waits already",
        500 => "Something in the server failed",
        503 => "The server is ending; or too much waits, where it was started with `--overload-status 503`",
        _ => "An error",
    }
}
