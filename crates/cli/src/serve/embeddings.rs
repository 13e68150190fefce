//! `POST /v1/embeddings`.

use super::api_error::{ApiError, Body};
use super::input::Input;
use super::openapi::{NameSchema, WidthSchema};
use super::overflow::{self, Lost, Overflow};
use super::prompt::ChatMessage;
use super::speaker::LostUsage;
use super::state::Server;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header::WARNING};
use base64::Engine as _;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::task::block_in_place;
use utoipa::ToSchema;

/// Texts to embed.
#[derive(Deserialize, ToSchema)]
pub(crate) struct EmbeddingsRequest {
    /// One text or several, or tokens of this model's tokenizer.
    input: Option<Input>,
    /// Instead of `input` (vLLM): a conversation, or a list of them; the text of each is that of its user.
    messages: Option<Messages>,
    #[schema(value_type = Option<NameSchema>)]
    model: Option<String>,
    #[schema(value_type = Option<WidthSchema>)]
    dimensions: Option<usize>,
    #[serde(default, deserialize_with = "super::input::or_default")]
    encoding_format: EncodingFormat,
    /// Longer texts are cut to this many tokens; -1: to what the model can take (vLLM).
    truncate_prompt_tokens: Option<i64>,
    /// What happens to texts that are too long.
    #[serde(default, deserialize_with = "super::input::or_default")]
    overflow: Overflow,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Messages {
    /// A conversation.
    One(Vec<ChatMessage>),
    /// Conversations.
    Many(Vec<Vec<ChatMessage>>),
}

#[derive(Deserialize, ToSchema, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

/// Vectors in the order of the texts.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmbeddingsReply {
    #[schema(pattern = "^list$")]
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: EmbeddingUsage,
}

#[derive(Serialize, ToSchema)]
struct EmbeddingUsage {
    /// Those that ran.
    prompt_tokens: usize,
    total_tokens: usize,
    #[serde(flatten)]
    lost: LostUsage,
}

#[derive(Serialize, ToSchema)]
struct Embedding {
    #[schema(pattern = "^embedding$")]
    object: &'static str,
    /// Of the text among those of the request.
    index: usize,
    embedding: Vector,
}

/// Numbers, or their little-endian f32 bytes in base64.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Vector {
    /// The numbers.
    Float(Vec<f32>),
    /// Their bytes.
    Base64(String),
}

impl Vector {
    fn new(vector: Vec<f32>, format: EncodingFormat) -> Self {
        match format {
            EncodingFormat::Float => Self::Float(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Self::Base64(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
        }
    }
}

impl EmbeddingsRequest {
    /// # Errors
    /// 400 for none, or both.
    fn input(&mut self) -> Result<Input, ApiError> {
        let of = |messages: Vec<ChatMessage>| -> Result<String, ApiError> {
            messages.iter().filter(|message| message.is_from_user()).map(ChatMessage::text_alone).collect()
        };
        match (self.input.take(), self.messages.take()) {
            (Some(input), None) => Ok(input),
            (None, Some(Messages::One(one))) => Ok(Input::Text(of(one)?)),
            (None, Some(Messages::Many(many))) => many.into_iter().map(of).collect::<Result<_, _>>().map(Input::Texts),
            (Some(_), Some(_)) => Err(ApiError::field("messages", "none beside input", "some")),
            (None, None) => Err(ApiError::field("input", "a text, several, or tokens", "none")),
        }
    }
}

/// The vectors of texts
#[utoipa::path(
    post,
    path = "/embeddings",
    tag = "Texts",
    operation_id = "embeddings",
    request_body(
        content = EmbeddingsRequest,
        example = json!({ "input": ["A man plays a guitar.", "Someone makes music."] }),
    ),
    responses(
        (
            status = 200,
            description = "A vector of unit length for each text",
            body = EmbeddingsReply,
        ),
    ),
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(mut request): Body<EmbeddingsRequest>,
) -> Result<(Option<[(HeaderName, HeaderValue); 1]>, Json<EmbeddingsReply>), ApiError> {
    server.check_model(request.model.as_deref())?;
    server.check_dimensions(request.dimensions)?;
    let (input, tokenizer) = (request.input()?, &server.model.base().tokenizer);
    let mut inputs = block_in_place(|| input.ids(&server, "input", |text| Ok(tokenizer.encode(text)?)))?;
    if inputs.is_empty() || inputs.len() > server.limits.inputs {
        let expected = format!("1 to {} texts", server.limits.inputs);
        return Err(ApiError::field("input", &expected, inputs.len()));
    }
    let mut truncated = 0;
    if let Some(limit) = request.truncate_prompt_tokens {
        let most = server.longest_text()?;
        let limit = usize::try_from(limit).unwrap_or(most).min(most);
        for ids in &mut inputs {
            truncated += ids.len().saturating_sub(limit);
            server.metrics.truncations.inc_by(u64::from(ids.len() > limit));
            ids.truncate(limit);
        }
    }
    let num_tokens: usize = inputs.iter().map(Vec::len).sum();
    let ticket = server.admit(num_tokens)?;
    let all = inputs.into_iter().map(|ids| overflow::embed(&server, &ticket, ids, request.overflow));
    let mut lost = Lost { truncated, ..Lost::default() };
    let mut data = Vec::new();
    for (index, (vector, of_text)) in try_join_all(all).await?.into_iter().enumerate() {
        lost.add(of_text);
        data.push(Embedding { object: "embedding", index, embedding: Vector::new(vector, request.encoding_format) });
    }
    // Tokens that were cut did not run, and are not counted as if they had.
    let prompt_tokens = num_tokens + truncated - lost.truncated;
    let usage = EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens, lost: lost.usage() };
    let reply = EmbeddingsReply { object: "list", data, model: server.name.clone(), usage };
    Ok((lost.warning().map(|warning| [(WARNING, warning)]), Json(reply)))
}
