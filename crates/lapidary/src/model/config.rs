//! The decoder as data: every difference between model families is a field of [`DecoderConfig`].

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) mod validate;

/// What can be wrong with a model's configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("expected JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The text is too long to be a configuration.
    #[error("expected at most {expected} bytes, found {found}")]
    TooLarge {
        /// The limit, bytes.
        expected: usize,
        /// The length of the text, bytes.
        found: usize,
    },
    /// No decoder of this kind is known.
    #[error("{key}: expected one of {known}, found `{found}`")]
    UnknownModelType {
        /// Where the kind is named.
        key: &'static str,
        /// The known kinds.
        known: String,
        /// What stands in the file.
        found: String,
    },
    /// A key whose meaning is not known, so that leaving it out could change the model.
    #[error("{key}: unknown key for model type `{model_type}`")]
    UnknownKey {
        /// The key, with its section.
        key: String,
        /// The kind of model.
        model_type: String,
    },
    /// A key without which the model cannot be built.
    #[error("{key}: missing, expected {expected}")]
    Missing {
        /// The key, with its section.
        key: String,
        /// What should stand there.
        expected: String,
    },
    /// A value of the wrong type, out of bounds, or of a kind that the decoder does not compute.
    #[error("{field}: expected {expected}, found {found}")]
    Invalid {
        /// The field or key, with its section.
        field: String,
        /// What is accepted.
        expected: String,
        /// What was given.
        found: String,
    },
}

impl ConfigError {
    /// `field` holds `found` where only `expected` is accepted; a long `found` is shortened.
    pub fn invalid(field: impl Into<String>, expected: impl Into<String>, found: impl std::fmt::Display) -> Self {
        const SHOWN_CHARS: usize = 80;
        let mut text = found.to_string();
        if let Some((end, _)) = text.char_indices().nth(SHOWN_CHARS) {
            text.truncate(end);
            text.push('…');
        }
        Self::Invalid { field: field.into(), expected: expected.into(), found: text }
    }
}

/// Non-linearity of the gated feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU (`gelu_pytorch_tanh`).
    GeluTanh,
}

/// How RoPE frequencies are changed for contexts longer than those of pre-training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "rope_type")]
pub enum RopeScaling {
    /// Frequencies as they are.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor, at least 1.
        factor: f64,
    },
    /// Llama 3.x: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided in full.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pre-training, tokens.
        original_max_position_embeddings: usize,
    },
}

/// One rotary position embedding (arXiv 2104.09864), half-split layout as in `transformers`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeConfig {
    /// Base of the geometric progression of wavelengths.
    pub theta: f64,
    /// Change for long contexts.
    pub scaling: RopeScaling,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerConfig {
    /// A query sees its own key and the `sliding_window - 1` before it; `None` sees all.
    pub sliding_window: Option<usize>,
    /// Index into [`DecoderConfig::ropes`]; `None` is a layer without positions (NoPE).
    pub rope: Option<usize>,
}

/// A decoder-only transformer. Validated by [`DecoderConfig::validate`] before anything is allocated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Rows of the token embedding, V.
    pub vocab_size: usize,
    /// Width of the residual stream, D.
    pub hidden_size: usize,
    /// Width of the feed-forward network, F.
    pub intermediate_size: usize,
    /// Query heads, N.
    pub num_attention_heads: usize,
    /// Key/value heads, K; divides N.
    pub num_key_value_heads: usize,
    /// Width of a head, H; even.
    pub head_dim: usize,
    /// Longest row, tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Added to every norm weight before use (1 where weights are stored as an offset from one).
    pub norm_offset: f32,
    /// Non-linearity of the feed-forward network.
    pub hidden_act: Activation,
    /// The output head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the output projection of attention.
    pub o_bias: bool,
    /// Biases in the feed-forward network.
    pub mlp_bias: bool,
    /// RMS norm over each head of q and k, before RoPE.
    pub qk_norm: bool,
    /// Further norms on the outputs of attention and feed-forward, before the residual sum.
    pub post_norms: bool,
    /// Scores are multiplied by this (usually `head_dim^-0.5`).
    pub query_scale: f32,
    /// Input embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// Attention scores are `cap * tanh(score / cap)`.
    pub attn_logit_softcapping: Option<f32>,
    /// Logits are `cap * tanh(logit / cap)`.
    pub final_logit_softcapping: Option<f32>,
    /// The different position embeddings in use.
    pub ropes: Vec<RopeConfig>,
    /// One entry per layer, L.
    pub layers: Vec<LayerConfig>,
    /// First token of a row, where the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a reply.
    pub eos_token_ids: Vec<u32>,
}
