//! Models: configuration, weights, the decoder, its cache and its adapter.

mod adapter;
mod base;
mod chat;
pub mod config;
mod decoder;
pub(crate) mod gem_dir;
mod generation_config;
pub mod gguf;
pub mod gguf_weights;
pub mod hf;
mod kv_cache;
mod kv_pool;
mod layer;
mod layer_run;
mod passes;
mod rope;
mod safetensors_dir;
mod segment;
pub mod source;
mod weights;

pub use adapter::{Adapter, AdapterView, LoraConfig};
pub use base::{BaseModel, ModelFiles};
pub use chat::{ContentPart, PartedMessage, PromptPart, encode_chat, encode_parts};
pub use config::{ConfigError, DecoderConfig};
pub use decoder::{Decoder, ForwardOptions, HiddenDropout, NamedVars, Observe};
pub use gem_dir::{GemConfig, GemDir};
pub use generation_config::GenerationConfig;
pub use kv_cache::{Kv, KvCache};
pub use kv_pool::{Compressed, KvPool, KvRow, PAGE_TOKENS, PoolPass};
pub use layer::LINEAR_MODULES;
pub use passes::{PassRow, Passes};
pub use rope::frequencies;
pub use safetensors_dir::{SafetensorsDir, SafetensorsError};
pub use segment::Segment;
pub use weights::{WeightFormat, WeightSource};
