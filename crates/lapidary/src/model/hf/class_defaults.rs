//! The defaults of the configuration classes of `transformers`, for keys that a file leaves out.

use super::rope::ThetaDefaults;

/// What a configuration class of `transformers` takes where the file is silent; `None` must be given.
#[derive(Clone, Copy)]
pub(super) struct ClassDefaults {
    pub(super) vocab_size: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    /// `None`: as many as query heads.
    pub(super) num_key_value_heads: Option<usize>,
    /// `None`: `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) tie_word_embeddings: bool,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<u32>,
    pub(super) theta: ThetaDefaults,
}

pub(super) const LLAMA: ClassDefaults = ClassDefaults {
    vocab_size: None,
    num_attention_heads: None,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    tie_word_embeddings: false,
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    theta: ThetaDefaults { full: 10_000.0, sliding: None },
};

pub(super) const MISTRAL: ClassDefaults =
    ClassDefaults { num_key_value_heads: Some(8), max_position_embeddings: 131_072, ..LLAMA };

pub(super) const QWEN: ClassDefaults = ClassDefaults {
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    bos_token_id: None,
    eos_token_id: None,
    ..LLAMA
};

pub(super) const SMOLLM3: ClassDefaults = ClassDefaults {
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    tie_word_embeddings: true,
    bos_token_id: Some(128_000),
    eos_token_id: Some(128_001),
    theta: ThetaDefaults { full: 2_000_000.0, sliding: None },
    ..LLAMA
};

pub(super) const GEMMA2: ClassDefaults = ClassDefaults {
    vocab_size: Some(256_000),
    num_attention_heads: Some(8),
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    bos_token_id: Some(2),
    eos_token_id: Some(1),
    theta: ThetaDefaults { full: 10_000.0, sliding: None },
};

pub(super) const GEMMA3: ClassDefaults = ClassDefaults {
    vocab_size: Some(262_208),
    max_position_embeddings: 131_072,
    theta: ThetaDefaults { full: 1_000_000.0, sliding: Some(10_000.0) },
    ..GEMMA2
};
