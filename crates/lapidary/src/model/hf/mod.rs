//! From the descriptions that other tools write (`config.json`, GGUF metadata) to a [`DecoderConfig`].
//!
//! The only place where model families are named.

use super::config::{ConfigError, DecoderConfig, LayerConfig, RopeConfig};

mod class_defaults;
mod config_json;
mod fields;
mod gguf_metadata;
mod rope;

pub use config_json::config_from_json;
pub use gguf_metadata::{GgufMetadata, config_from_gguf};

/// Whether GGUF files of this architecture hold the rows of q and k in interleaved-RoPE order.
pub fn gguf_rows_are_interleaved(architecture: &str) -> bool {
    matches!(architecture, "llama" | "smollm3")
}

/// Whether llama.cpp puts BOS before texts for this pre-tokenizer where the file does not say.
pub fn gguf_pattern_adds_bos(pre: &str) -> bool {
    matches!(pre, "llama3" | "llama-v3" | "llama-bpe")
}

/// The position embeddings of layers that see all keys and of layers with a sliding window.
#[derive(Debug, Clone, Copy)]
struct LayerRopes {
    full: RopeConfig,
    sliding: RopeConfig,
}

/// Fills in `ropes` and `layers`: one layer per entry of `sliding`, with positions where `has_rope` says so.
fn set_layers(
    config: &mut DecoderConfig,
    sliding: &[bool],
    window: Option<usize>,
    ropes: LayerRopes,
    has_rope: impl Fn(usize) -> bool,
) -> Result<(), ConfigError> {
    for (index, &is_sliding) in sliding.iter().enumerate() {
        if is_sliding && window.is_none() {
            let expected = format!("a window for layer {index}, which has sliding attention");
            return Err(ConfigError::Missing { key: "sliding_window".into(), expected });
        }
        let rope = has_rope(index).then(|| {
            let rope = if is_sliding { ropes.sliding } else { ropes.full };
            config.ropes.iter().position(|known| *known == rope).unwrap_or_else(|| {
                config.ropes.push(rope);
                config.ropes.len() - 1
            })
        });
        config.layers.push(LayerConfig { sliding_window: window.filter(|_| is_sliding), rope });
    }
    Ok(())
}
