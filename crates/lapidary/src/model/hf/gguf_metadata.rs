//! GGUF metadata as written by llama.cpp's converters, with the defaults of its loaders.

use super::{LayerRopes, set_layers};
use crate::model::config::validate::{MAX_NUM_HIDDEN_LAYERS, count};
use crate::model::config::{Activation, ConfigError, DecoderConfig, RopeConfig, RopeScaling};

const ARCHITECTURES: &[&str] = &["gemma2", "gemma3", "llama", "qwen2", "qwen3", "smollm3"];

/// Keys under the architecture that ask for something the decoder does not compute.
const UNSUPPORTED_KEYS: &[&str] =
    &["expert_count", "logit_scale", "embedding_scale", "residual_scale", "attention.clamp_kqv"];

/// The tensor in which per-frequency divisors of RoPE are stored.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// What a GGUF file says about its model, by key and tensor name.
pub trait GgufMetadata {
    /// The value of a whole-number key of any width, if not negative.
    fn u64(&self, key: &str) -> Option<u64>;
    /// The value of a number key, whole or not.
    fn f64(&self, key: &str) -> Option<f64>;
    /// The value of a true-or-false key.
    fn bool(&self, key: &str) -> Option<bool>;
    /// The value of a string key.
    fn str(&self, key: &str) -> Option<&str>;
    /// The number of elements of an array key.
    fn array_len(&self, key: &str) -> Option<usize>;
    /// Whether there is a tensor of this name.
    fn has_tensor(&self, name: &str) -> bool;
    /// The values of a small one-dimensional F32 tensor; `None` where they cannot be had.
    fn f32_tensor(&self, name: &str) -> Option<Vec<f32>>;
}

/// Reads the metadata of a GGUF file; the result is validated.
///
/// # Errors
/// [`ConfigError`], naming the key: an unknown architecture, a missing or out-of-bounds value, or one that
/// asks for something the decoder does not compute.
pub fn config_from_gguf(meta: &dyn GgufMetadata) -> Result<DecoderConfig, ConfigError> {
    let arch = meta.str("general.architecture").ok_or_else(|| ConfigError::Missing {
        key: "general.architecture".into(),
        expected: format!("one of {}", ARCHITECTURES.join(", ")),
    })?;
    if !ARCHITECTURES.contains(&arch) {
        return Err(ConfigError::UnknownModelType {
            key: "general.architecture",
            known: ARCHITECTURES.join(", "),
            found: arch.chars().take(80).collect(),
        });
    }
    let keys = Keys { meta, arch };
    keys.refuse_unsupported()?;
    let (mut config, num_layers) = common(&keys)?;
    match arch {
        "gemma2" | "gemma3" => gemma(&keys, &mut config, num_layers)?,
        _ => {
            config.qk_norm = arch == "qwen3";
            let window = keys.usize("attention.sliding_window")?;
            let rope = keys.rope(10_000.0, &config)?;
            let ropes = LayerRopes { full: rope, sliding: rope };
            let sliding = vec![window.is_some(); num_layers];
            // The converter of the one family with layers without positions fixes their interval.
            let has_rope = |index: usize| arch != "smollm3" || !(index + 1).is_multiple_of(4);
            set_layers(&mut config, &sliding, window, ropes, has_rope)?;
        }
    }
    config.validate()?;
    Ok(config)
}

/// What the Gemma families share and where they differ; the converter has added the 1 to their norms.
fn gemma(keys: &Keys, config: &mut DecoderConfig, num_layers: usize) -> Result<(), ConfigError> {
    let is_third = keys.arch == "gemma3";
    config.hidden_act = Activation::GeluTanh;
    config.post_norms = true;
    config.qk_norm = is_third;
    config.embedding_scale = (config.hidden_size as f64).sqrt() as f32;
    // The 27B models, known by their depth, scale by the width per head instead of head_dim.
    if num_layers == if is_third { 62 } else { 46 } {
        let width = config.hidden_size as f64 / config.num_attention_heads as f64;
        config.query_scale = width.powf(-0.5) as f32;
    }
    if let Some(scale) = keys.f64("attention.scale")? {
        config.query_scale = scale as f32;
    }
    let caps = if is_third { (None, None) } else { (Some(50.0), Some(30.0)) };
    config.attn_logit_softcapping = keys.f64("attn_logit_softcapping")?.or(caps.0).map(|cap| cap as f32);
    config.final_logit_softcapping = keys.f64("final_logit_softcapping")?.or(caps.1).map(|cap| cap as f32);
    let default_window = (!is_third).then_some(4096);
    let window = keys.usize("attention.sliding_window")?.or(default_window);
    let default_pattern = if is_third { 6 } else { 2 };
    let pattern = keys.usize("attention.sliding_window_pattern")?.unwrap_or(default_pattern);
    count(&keys.path("attention.sliding_window_pattern"), pattern, usize::MAX)?;
    let full = keys.rope(if is_third { 1_000_000.0 } else { 10_000.0 }, config)?;
    let sliding = if is_third {
        let theta = keys.f64("rope.freq_base_swa")?.unwrap_or(10_000.0);
        RopeConfig { theta, scaling: RopeScaling::Default }
    } else {
        full
    };
    let is_sliding: Vec<bool> = (1..=num_layers).map(|number| !number.is_multiple_of(pattern)).collect();
    set_layers(config, &is_sliding, window, LayerRopes { full, sliding }, |_| true)
}

/// The fields that every family has, and the number of layers, which is within bounds.
fn common(keys: &Keys) -> Result<(DecoderConfig, usize), ConfigError> {
    let num_layers = keys.required_usize("block_count")?;
    count(&keys.path("block_count"), num_layers, MAX_NUM_HIDDEN_LAYERS)?;
    let hidden_size = keys.required_usize("embedding_length")?;
    let num_attention_heads = keys.required_usize("attention.head_count")?;
    count(&keys.path("attention.head_count"), num_attention_heads, usize::MAX)?;
    let head_dim = match keys.usize("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
        None => {
            let expected = format!("a multiple of attention.head_count = {num_attention_heads}");
            return Err(ConfigError::invalid(keys.path("embedding_length"), expected, hidden_size));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(found) = keys.usize(key)?
            && found != head_dim
        {
            let expected = format!("{head_dim}, the width of a head");
            return Err(ConfigError::invalid(keys.path(key), expected, found));
        }
    }
    let rms_norm_eps = keys.f64("attention.layer_norm_rms_epsilon")?;
    let config = DecoderConfig {
        vocab_size: keys.vocab_size()?,
        hidden_size,
        intermediate_size: keys.required_usize("feed_forward_length")?,
        num_attention_heads,
        num_key_value_heads: keys.usize("attention.head_count_kv")?.unwrap_or(num_attention_heads),
        head_dim,
        max_position_embeddings: keys.required_usize("context_length")?,
        rms_norm_eps: rms_norm_eps.ok_or_else(|| ConfigError::Missing {
            key: keys.path("attention.layer_norm_rms_epsilon"),
            expected: "a number".into(),
        })? as f32,
        norm_offset: 0.0,
        hidden_act: Activation::Silu,
        tie_word_embeddings: !keys.meta.has_tensor("output.weight"),
        qkv_bias: keys.meta.has_tensor("blk.0.attn_q.bias"),
        o_bias: keys.meta.has_tensor("blk.0.attn_output.bias"),
        mlp_bias: keys.meta.has_tensor("blk.0.ffn_gate.bias"),
        qk_norm: false,
        post_norms: false,
        query_scale: (head_dim as f64).powf(-0.5) as f32,
        embedding_scale: 1.0,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        ropes: Vec::new(),
        layers: Vec::new(),
        bos_token_id: keys.token_id("bos_token_id")?,
        eos_token_ids: keys.eos_token_ids()?,
    };
    Ok((config, num_layers))
}

/// The keys under one architecture, with typed reads.
struct Keys<'a> {
    meta: &'a dyn GgufMetadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// Fails on a value of another type, which would otherwise pass for an absent one.
    fn wrong_type(&self, path: &str, expected: &str) -> Result<(), ConfigError> {
        let found = if let Some(len) = self.meta.array_len(path) {
            format!("an array of {len}")
        } else if let Some(value) = self.meta.f64(path) {
            value.to_string()
        } else if let Some(value) = self.meta.str(path) {
            format!("`{value}`")
        } else if let Some(value) = self.meta.bool(path) {
            value.to_string()
        } else {
            return Ok(());
        };
        Err(ConfigError::invalid(path, expected, found))
    }

    fn usize_at(&self, path: &str) -> Result<Option<usize>, ConfigError> {
        let expected = "one whole number";
        let Some(value) = self.meta.u64(path) else {
            self.wrong_type(path, expected)?;
            return Ok(None);
        };
        match usize::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(ConfigError::invalid(path, expected, value)),
        }
    }

    fn usize(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.usize_at(&self.path(key))
    }

    fn required_usize(&self, key: &str) -> Result<usize, ConfigError> {
        self.usize(key)?.ok_or_else(|| ConfigError::Missing { key: self.path(key), expected: "a whole number".into() })
    }

    fn f64(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let path = self.path(key);
        let whole = || self.meta.u64(&path).map(|value| value as f64);
        let value = self.meta.f64(&path).or_else(whole);
        if value.is_none() {
            self.wrong_type(&path, "a number")?;
        }
        Ok(value)
    }

    fn token_id(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        let path = format!("tokenizer.ggml.{key}");
        match self.usize_at(&path)?.map(|id| (id, u32::try_from(id))) {
            None => Ok(None),
            Some((_, Ok(id))) => Ok(Some(id)),
            Some((found, Err(_))) => Err(ConfigError::invalid(path, "a token id", found)),
        }
    }

    fn eos_token_ids(&self) -> Result<Vec<u32>, ConfigError> {
        let mut ids = Vec::new();
        for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            ids.extend(self.token_id(key)?.filter(|id| !ids.contains(id)));
        }
        Ok(ids)
    }

    fn vocab_size(&self) -> Result<usize, ConfigError> {
        let tokens = self.meta.array_len("tokenizer.ggml.tokens");
        match (tokens, self.usize("vocab_size")?) {
            (Some(tokens), Some(stated)) if tokens != stated => {
                let expected = format!("{tokens}, the length of tokenizer.ggml.tokens");
                Err(ConfigError::invalid(self.path("vocab_size"), expected, stated))
            }
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => {
                Err(ConfigError::Missing { key: "tokenizer.ggml.tokens".into(), expected: "the vocabulary".into() })
            }
        }
    }

    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        for key in UNSUPPORTED_KEYS {
            let value = self.f64(key)?;
            if let Some(value) = value.filter(|value| *value != 0.0) {
                return Err(ConfigError::invalid(self.path(key), "no such key, or 0", value));
            }
        }
        let causal = self.path("attention.causal");
        if self.meta.bool(&causal) == Some(false) {
            return Err(ConfigError::invalid(causal, "true", false));
        }
        Ok(())
    }

    fn rope(&self, default_theta: f64, config: &DecoderConfig) -> Result<RopeConfig, ConfigError> {
        let theta = self.f64("rope.freq_base")?.unwrap_or(default_theta);
        let path = self.path("rope.scaling.type");
        let legacy_factor = self.f64("rope.scale_linear")?;
        let factor = self.f64("rope.scaling.factor")?.or(legacy_factor).filter(|f| *f != 0.0);
        let linear = match self.meta.str(&path) {
            None => legacy_factor.and(factor),
            Some("none") => None,
            Some("linear") => factor,
            Some(other) => {
                return Err(ConfigError::invalid(path, "`none` or `linear`", format!("`{other}`")));
            }
        };
        let scaling = match (linear, self.meta.has_tensor(ROPE_FREQS)) {
            (None, false) => RopeScaling::Default,
            (Some(1.0), false) => RopeScaling::Default,
            (Some(factor), false) => RopeScaling::Linear { factor },
            (None, true) => self.llama3(theta, config.head_dim)?,
            (Some(factor), true) => {
                return Err(ConfigError::invalid(path, format!("no scaling beside {ROPE_FREQS}"), factor));
            }
        };
        Ok(RopeConfig { theta, scaling })
    }

    /// The rule behind the stored divisors, accepted only if it gives all of them.
    fn llama3(&self, theta: f64, head_dim: usize) -> Result<RopeScaling, ConfigError> {
        let stored = self
            .meta
            .f32_tensor(ROPE_FREQS)
            .ok_or_else(|| ConfigError::Missing { key: ROPE_FREQS.into(), expected: "a readable F32 tensor".into() })?;
        let expected = format!("{} numbers, half the width of a head", head_dim / 2);
        if stored.len() != head_dim / 2 {
            return Err(ConfigError::invalid(ROPE_FREQS, expected, stored.len()));
        }
        let factor = f64::from(stored.iter().copied().fold(1.0, f32::max));
        // The bounds and the context length that Llama 3.1 to 3.3 share.
        let (low_freq_factor, high_freq_factor) = (1.0, 4.0);
        let original_max_position_embeddings = self.usize("rope.scaling.original_context_length")?.unwrap_or(8192);
        let original = original_max_position_embeddings as f64;
        for (index, &found) in stored.iter().enumerate() {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * index as f64 / head_dim as f64);
            let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let smooth = smooth.clamp(0.0, 1.0);
            let divisor = 1.0 / ((1.0 - smooth) / factor + smooth);
            if found.is_nan() || (f64::from(found) - divisor).abs() > 1e-3 * divisor {
                let expected = format!("{divisor} by the rule of Llama 3 with factor {factor}");
                return Err(ConfigError::invalid(format!("{ROPE_FREQS}[{index}]"), expected, found));
            }
        }
        Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings })
    }
}
