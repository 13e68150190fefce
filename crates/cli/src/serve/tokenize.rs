//! `/tokenize` and `/detokenize`, as vLLM, llama.cpp and Text Embeddings Inference have them; what a body has tells whose it is.

use super::api_error::{ApiError, Body, EitherError, TeiError};
use super::openapi::IdSchema;
use super::prompt::{ChatMessage, Conversation};
use super::state::Server;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use lapidary::Error;
use lapidary::layout::TokenId;
use lapidary::model::BaseModel;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use tokio::task::block_in_place;
use utoipa::ToSchema;

/// The text is `prompt` or `messages` (vLLM), `content` (llama.cpp) or `inputs` (TEI); the answer has that program's form.
#[derive(Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// vLLM: a text.
    prompt: Option<String>,
    /// vLLM: a conversation.
    messages: Option<Vec<ChatMessage>>,
    /// llama.cpp: a text.
    content: Option<String>,
    /// TEI: texts.
    inputs: Option<Texts>,
    /// BOS before the text, where the model has one; the default is that of the program whose form it is.
    add_special_tokens: Option<bool>,
    /// vLLM: the strings of the tokens too.
    #[serde(default, deserialize_with = "super::input::or_default")]
    return_token_strs: bool,
    /// vLLM: up to the head of the reply, which is the default and all there is.
    add_generation_prompt: Option<bool>,
    /// TEI: the name of a prompt before the text; this model has none.
    prompt_name: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Texts {
    /// One text.
    One(String),
    /// Texts.
    Many(Vec<String>),
}

/// The tokens of a text, in the form of the program whose body asks for them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum TokenizeReply {
    /// vLLM.
    Vllm(VllmTokens),
    /// llama.cpp.
    LlamaCpp(LlamaCppTokens),
    /// TEI: of each text.
    Tei(Vec<Vec<TeiToken>>),
}

#[derive(Serialize, ToSchema)]
pub(crate) struct VllmTokens {
    count: usize,
    /// Most tokens of a conversation with its reply.
    max_model_len: usize,
    #[schema(value_type = Vec<IdSchema>)]
    tokens: Vec<TokenId>,
    /// With `return_token_strs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<Option<String>>>,
}

#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LlamaCppTokens {
    #[schema(value_type = Vec<IdSchema>)]
    tokens: Vec<TokenId>,
}

/// The tokens of texts
///
/// As vLLM, llama.cpp and Text Embeddings Inference have them; what the body has tells whose it is.
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "Tokens",
    request_body(content = TokenizeRequest, example = json!({ "prompt": "A man plays a guitar." })),
    responses(
        (status = 200, description = "The tokens", body = TokenizeReply),
        (status = 400, description = "The body is none that can be answered", body = EitherError),
        (
            status = 413,
            description = "The body has too many bytes, or too many texts",
            body = EitherError,
        ),
        (
            status = 422,
            description = "A field of TEI's form has not what it may have",
            body = TeiError,
        ),
    ),
)]
pub(crate) async fn tokenize(State(server): State<Arc<Server>>, Body(request): Body<TokenizeRequest>) -> Response {
    if let Some(inputs) = request.inputs {
        let texts = match inputs {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        };
        let with_bos = request.add_special_tokens.unwrap_or(true);
        let tokens = match request.prompt_name {
            Some(name) => Err(ApiError::field("prompt_name", "none: this model has no named prompts", name)),
            None => block_in_place(|| tei_tokens(&server, &texts, with_bos)),
        };
        return match tokens {
            Ok(tokens) => Json(TokenizeReply::Tei(tokens)).into_response(),
            Err(error) => error.into_tei_response(),
        };
    }
    block_in_place(|| plain_tokens(&server, request)).map(Json).into_response()
}

/// The forms of vLLM and llama.cpp.
fn plain_tokens(server: &Server, request: TokenizeRequest) -> Result<TokenizeReply, ApiError> {
    let base = server.model.base();
    let encode = |text: &str, with_bos: bool| -> Result<Vec<TokenId>, Error> {
        let bos = with_bos.then(|| base.bos()).flatten();
        Ok(bos.into_iter().chain(base.tokenizer.encode_with_special(text)?).collect())
    };
    let ids = if let Some(prompt) = request.prompt {
        encode(&prompt, request.add_special_tokens.unwrap_or(true))?
    } else if let Some(messages) = request.messages {
        if request.add_generation_prompt == Some(false) {
            return Err(ApiError::field("add_generation_prompt", "true", false));
        }
        let (ids, compressed) = Conversation::new(server, messages)?.tokens(server)?;
        if !compressed.is_empty() {
            return Err(ApiError::field("messages", "texts: compressed ones have no tokens", "a compressed one"));
        }
        let bos = request.add_special_tokens.unwrap_or(false).then(|| base.bos()).flatten();
        bos.into_iter().chain(ids).collect()
    } else if let Some(content) = request.content {
        let tokens = encode(&content, request.add_special_tokens.unwrap_or(false))?;
        return Ok(TokenizeReply::LlamaCpp(LlamaCppTokens { tokens }));
    } else {
        return Err(ApiError::field("body", "one of prompt, messages, content, inputs", "none"));
    };
    let token_strs = request.return_token_strs.then(|| ids.iter().map(|id| base.tokenizer.id_to_token(*id)).collect());
    let (count, max_model_len) = (ids.len(), server.longest_row);
    Ok(TokenizeReply::Vllm(VllmTokens { count, max_model_len, tokens: ids, token_strs }))
}

/// A token in TEI's form.
#[derive(Serialize, ToSchema)]
pub(crate) struct TeiToken {
    #[schema(value_type = IdSchema)]
    id: TokenId,
    text: String,
    special: bool,
    /// Its place in the text, in characters; a token that the text has not has none.
    start: Option<usize>,
    stop: Option<usize>,
}

/// The form of TEI.
fn tei_tokens(server: &Server, texts: &[String], with_bos: bool) -> Result<Vec<Vec<TeiToken>>, ApiError> {
    if texts.is_empty() || texts.len() > server.limits.inputs {
        return Err(ApiError::num_texts("inputs", server.limits.inputs, texts.len()));
    }
    texts.iter().map(|text| Ok(tei_tokens_of(server.model.base(), text, with_bos)?)).collect()
}

fn tei_tokens_of(base: &BaseModel, text: &str, with_bos: bool) -> Result<Vec<TeiToken>, Error> {
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let char_at = |byte: usize| starts.partition_point(|start| *start < byte);
    let token = |id: TokenId, place: Option<Range<usize>>| {
        let text = base.tokenizer.decode(&[id], false).unwrap_or_default();
        let (start, stop) = (place.as_ref().map(|at| char_at(at.start)), place.as_ref().map(|at| char_at(at.end)));
        TeiToken { id, text, special: base.tokenizer.is_special(id), start, stop }
    };
    let (ids, places) = base.tokenizer.encode_special_with_offsets(text)?;
    let bos = with_bos.then(|| base.bos()).flatten().map(|id| token(id, None));
    Ok(bos.into_iter().chain(ids.into_iter().zip(places).map(|(id, at)| token(id, Some(at)))).collect())
}

/// Tokens of a text.
#[derive(Deserialize, ToSchema)]
pub(crate) struct DetokenizeRequest {
    #[schema(value_type = Vec<IdSchema>)]
    tokens: Vec<TokenId>,
}

/// The text of tokens, in vLLM's form.
#[derive(Serialize, ToSchema)]
pub(crate) struct DetokenizeReply {
    prompt: String,
}

/// The text of tokens
#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "Tokens",
    request_body(content = DetokenizeRequest, example = json!({ "tokens": [72, 105] })),
    responses((status = 200, description = "The text", body = DetokenizeReply)),
)]
pub(crate) async fn detokenize(
    State(server): State<Arc<Server>>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<DetokenizeReply>, ApiError> {
    let base = server.model.base();
    let vocab_size = base.decoder.config().vocab_size;
    if let Some(id) = request.tokens.iter().find(|id| **id as usize >= vocab_size) {
        return Err(ApiError::field("tokens", &format!("ids below {vocab_size}"), id));
    }
    let decoded = block_in_place(|| base.tokenizer.decode(&request.tokens, false));
    let prompt = decoded.map_err(lapidary::Error::from)?;
    Ok(Json(DetokenizeReply { prompt }))
}
