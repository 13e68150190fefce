//! `POST /v1/compress`: a text becomes its special tokens' keys and values, which conversations name by a handle.

use super::api_error::{ApiError, Body};
use super::choices::Choices;
use super::input::OneInput;
use super::openapi::NameSchema;
use super::speaker::{Gate, Prompt, Said, Speaker, Usage};
use super::state::{Reading, Server, unix_now};
use axum::Json;
use axum::extract::State;
use lapidary::engine::{Compressed, place};
use lru::LruCache;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::block_in_place;
use utoipa::ToSchema;

/// Compressed texts by their handles; those that have longest not been asked for make room for others.
pub(crate) struct Store {
    entries: Mutex<(LruCache<String, Arc<Compressed>>, usize)>,
    max_bytes: usize,
}

impl Store {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { entries: Mutex::new((LruCache::unbounded(), 0)), max_bytes }
    }

    /// Keeps a text; returns its handle, which nobody can guess.
    ///
    /// # Errors
    /// 400 when it alone is more than is kept.
    fn keep(&self, compressed: Arc<Compressed>) -> Result<String, ApiError> {
        let num_bytes = compressed.num_bytes();
        if num_bytes > self.max_bytes {
            return Err(ApiError::field(
                "input",
                &format!("at most {} bytes of keys and values", self.max_bytes),
                num_bytes,
            ));
        }
        let id = format!("cmp-{:032x}", rand::random::<u128>());
        let (entries, held) = &mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        *held += num_bytes;
        entries.put(id.clone(), compressed);
        while *held > self.max_bytes {
            let Some((_, oldest)) = entries.pop_lru() else { break };
            *held -= oldest.num_bytes();
        }
        Ok(id)
    }

    /// # Errors
    /// 400 for a handle that is not, or not any more, known.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Compressed>, ApiError> {
        let (entries, _) = &mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.get(id).cloned();
        found.ok_or_else(|| ApiError::field("id", "the handle of a compressed text that is still kept", id))
    }
}

/// A text to compress.
#[derive(Deserialize, ToSchema)]
pub(crate) struct CompressRequest {
    /// The text, or its tokens.
    input: OneInput,
    #[schema(value_type = Option<NameSchema>)]
    model: Option<String>,
    /// Tokens that the special tokens are asked to bring back of it, to see what they hold.
    recall: Option<usize>,
}

/// A text as its special tokens hold it.
#[derive(Serialize, ToSchema)]
pub(crate) struct CompressReply {
    /// Handle for the parts `{"type": "compressed", "id": ...}` of messages; it lasts until its place is needed, or the
    /// server ends.
    id: String,
    #[schema(pattern = "^compressed$")]
    object: &'static str,
    /// Seconds since 1970.
    created: u64,
    model: String,
    num_text_tokens: usize,
    num_special_tokens: usize,
    /// Bytes of their keys and values.
    num_kv_bytes: usize,
    /// The text's vector, as `/v1/embeddings` gives it: the same pass makes both.
    embedding: Vec<f32>,
    /// What the special tokens bring back, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    recall: Option<String>,
    usage: Usage,
}

/// Compresses a text to its special tokens
///
/// Conversations name it by its `id`, in parts of type `compressed`.
#[utoipa::path(
    post,
    path = "/compress",
    tag = "Texts",
    operation_id = "compress",
    request_body(
        content = CompressRequest,
        example = json!({ "input": "The museum of clocks opened in 1903 in an old brewery.", "recall": 16 }),
    ),
    responses(
        (status = 200, description = "The handle of the compressed text", body = CompressReply),
    ),
)]
pub(crate) async fn create(
    State(server): State<Arc<Server>>,
    Body(request): Body<CompressRequest>,
) -> Result<Json<CompressReply>, ApiError> {
    server.check_model(request.model.as_deref())?;
    let tokenizer = &server.model.base().tokenizer;
    let ids = block_in_place(|| request.input.ids(&server, "input", |text| Ok(tokenizer.encode(text)?)))?;
    let num_text_tokens = ids.len();
    let ticket = server.admit(num_text_tokens)?;
    let read = server.read(ticket, Reading { ids, compress: true, ..Reading::default() }).await?;
    let compressed = read.compressed.ok_or_else(ApiError::gone)?;
    let mut usage = Usage { prompt_tokens: num_text_tokens, total_tokens: num_text_tokens, ..Usage::default() };
    let recall = match request.recall {
        None | Some(0) => None,
        // No more than there was.
        Some(count) => {
            let count = count.min(num_text_tokens);
            let (text, tokens) = recall(&server, Arc::clone(&compressed), count).await?;
            usage.completion_tokens = tokens;
            usage.total_tokens += tokens;
            Some(text)
        }
    };
    Ok(Json(CompressReply {
        num_text_tokens,
        num_special_tokens: compressed.num_tokens(),
        num_kv_bytes: compressed.num_bytes(),
        id: server.compressed.keep(compressed)?,
        object: "compressed",
        created: unix_now(),
        model: server.name.clone(),
        embedding: read.vector,
        recall,
        usage,
    }))
}

/// What comes behind the special tokens alone, the most probable token each time, and of how many tokens it is.
async fn recall(server: &Arc<Server>, compressed: Arc<Compressed>, count: usize) -> Result<(String, usize), ApiError> {
    let base = server.model.base();
    let first = compressed.next();
    if base.generation.eos_token_ids.contains(&first) {
        return Ok((String::new(), 0));
    }
    let mut ids = Vec::new();
    let placed = place(&mut ids, compressed);
    ids.push(first);
    let ticket = server.admit(ids.len())?;
    let prompt = Prompt {
        ids,
        compressed: vec![placed],
        max_tokens: Some(count - 1),
        logprobs: None,
        echo: false,
        grammar: None,
    };
    let mut speaker = Speaker::start(server, ticket, prompt, &Choices::greedy(), (0, &Arc::new(Gate::new()))).await?;
    let mut ids = vec![first];
    while let Some(said) = speaker.next().await? {
        if let Said::Piece(_, tokens) = said {
            ids.extend(tokens.iter().map(|token| token.id));
        }
    }
    let text = base.tokenizer.decode(&ids, true).map_err(lapidary::Error::from)?;
    Ok((text, ids.len()))
}
