//! The bounds on every field of a decoder configuration, checked before anything is allocated.

use super::{Activation, ConfigError, DecoderConfig, LayerConfig, RopeConfig, RopeScaling};

/// Most layers a model may have; checked before the list of layers is made.
pub(crate) const MAX_NUM_HIDDEN_LAYERS: usize = 1024;
const MAX_VOCAB_SIZE: usize = 1 << 22;
const MAX_HIDDEN_SIZE: usize = 1 << 16;
const MAX_INTERMEDIATE_SIZE: usize = 1 << 19;
const MAX_NUM_ATTENTION_HEADS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_POSITION_EMBEDDINGS: usize = 1 << 27;
const MAX_NUM_ROPES: usize = 8;
const MAX_NUM_EOS_TOKENS: usize = 64;
const MAX_ROPE_THETA: f64 = 1e12;
const MAX_ROPE_FACTOR: f64 = 1e6;
const MAX_SCALE: f32 = 1e6;

impl DecoderConfig {
    /// Checks every field, so that what is built from the configuration cannot be wrong or absurdly large.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] naming the first field out of bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps,
            norm_offset,
            hidden_act: Activation::Silu | Activation::GeluTanh,
            tie_word_embeddings: _,
            qkv_bias: _,
            o_bias: _,
            mlp_bias: _,
            qk_norm: _,
            post_norms: _,
            query_scale,
            embedding_scale,
            attn_logit_softcapping,
            final_logit_softcapping,
            ropes,
            layers,
            bos_token_id,
            eos_token_ids,
        } = self;
        count("vocab_size", *vocab_size, MAX_VOCAB_SIZE)?;
        count("hidden_size", *hidden_size, MAX_HIDDEN_SIZE)?;
        count("intermediate_size", *intermediate_size, MAX_INTERMEDIATE_SIZE)?;
        count("num_attention_heads", *num_attention_heads, MAX_NUM_ATTENTION_HEADS)?;
        count("num_key_value_heads", *num_key_value_heads, *num_attention_heads)?;
        if !num_attention_heads.is_multiple_of(*num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads = {num_attention_heads}");
            return Err(ConfigError::invalid("num_key_value_heads", expected, num_key_value_heads));
        }
        count("head_dim", *head_dim, MAX_HEAD_DIM)?;
        if !head_dim.is_multiple_of(2) {
            return Err(ConfigError::invalid("head_dim", "an even number", head_dim));
        }
        count("max_position_embeddings", *max_position_embeddings, MAX_POSITION_EMBEDDINGS)?;
        positive("rms_norm_eps", *rms_norm_eps, 1.0)?;
        if norm_offset.is_nan() || norm_offset.abs() > MAX_SCALE {
            return Err(ConfigError::invalid("norm_offset", "a finite number", norm_offset));
        }
        positive("query_scale", *query_scale, MAX_SCALE)?;
        positive("embedding_scale", *embedding_scale, MAX_SCALE)?;
        if let Some(cap) = attn_logit_softcapping {
            positive("attn_logit_softcapping", *cap, MAX_SCALE)?;
        }
        if let Some(cap) = final_logit_softcapping {
            positive("final_logit_softcapping", *cap, MAX_SCALE)?;
        }
        validate_ropes(ropes)?;
        validate_layers(layers, ropes.len())?;
        validate_token_ids(*bos_token_id, eos_token_ids, *vocab_size)
    }
}

fn validate_ropes(ropes: &[RopeConfig]) -> Result<(), ConfigError> {
    if ropes.len() > MAX_NUM_ROPES {
        let expected = format!("at most {MAX_NUM_ROPES} position embeddings");
        return Err(ConfigError::invalid("ropes", expected, ropes.len()));
    }
    for (index, RopeConfig { theta, scaling }) in ropes.iter().enumerate() {
        let name = |field: &str| format!("ropes[{index}].{field}");
        if !(*theta > 1.0 && *theta <= MAX_ROPE_THETA) {
            let expected = format!("a number above 1, at most {MAX_ROPE_THETA:e}");
            return Err(ConfigError::invalid(name("theta"), expected, theta));
        }
        match scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => rope_factor(&name("factor"), *factor)?,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                rope_factor(&name("factor"), *factor)?;
                if !(*low_freq_factor > 0.0 && *low_freq_factor <= MAX_ROPE_FACTOR) {
                    let expected = "a finite number above 0";
                    return Err(ConfigError::invalid(name("low_freq_factor"), expected, low_freq_factor));
                }
                if !(*high_freq_factor > *low_freq_factor && *high_freq_factor <= MAX_ROPE_FACTOR) {
                    let expected = format!("a finite number above low_freq_factor = {low_freq_factor}");
                    return Err(ConfigError::invalid(name("high_freq_factor"), expected, high_freq_factor));
                }
                let field = name("original_max_position_embeddings");
                count(&field, *original_max_position_embeddings, MAX_POSITION_EMBEDDINGS)?;
            }
        }
    }
    Ok(())
}

fn validate_layers(layers: &[LayerConfig], num_ropes: usize) -> Result<(), ConfigError> {
    count("layers", layers.len(), MAX_NUM_HIDDEN_LAYERS)?;
    for (index, LayerConfig { sliding_window, rope }) in layers.iter().enumerate() {
        if let Some(window) = sliding_window {
            count(&format!("layers[{index}].sliding_window"), *window, MAX_POSITION_EMBEDDINGS)?;
        }
        if let Some(rope) = rope
            && *rope >= num_ropes
        {
            let expected = format!("an index below {num_ropes}, the number of position embeddings");
            return Err(ConfigError::invalid(format!("layers[{index}].rope"), expected, rope));
        }
    }
    Ok(())
}

fn validate_token_ids(bos: Option<u32>, eos: &[u32], vocab_size: usize) -> Result<(), ConfigError> {
    if eos.len() > MAX_NUM_EOS_TOKENS {
        let expected = format!("at most {MAX_NUM_EOS_TOKENS} tokens");
        return Err(ConfigError::invalid("eos_token_ids", expected, eos.len()));
    }
    let named = bos.iter().map(|id| ("bos_token_id", id)).chain(eos.iter().map(|id| ("eos_token_id", id)));
    for (field, id) in named {
        if usize::try_from(*id).map_or(true, |id| id >= vocab_size) {
            let expected = format!("a token below vocab_size = {vocab_size}");
            return Err(ConfigError::invalid(field, expected, id));
        }
    }
    Ok(())
}

/// Checks that `1 <= value <= max`.
pub(crate) fn count(field: &str, value: usize, max: usize) -> Result<(), ConfigError> {
    if value == 0 || value > max {
        return Err(ConfigError::invalid(field, format!("1 to {max}"), value));
    }
    Ok(())
}

/// Checks that `0 < value <= max`; NaN fails.
fn positive(field: &str, value: f32, max: f32) -> Result<(), ConfigError> {
    if !(value > 0.0 && value <= max) {
        return Err(ConfigError::invalid(field, format!("a number above 0, at most {max}"), value));
    }
    Ok(())
}

fn rope_factor(field: &str, factor: f64) -> Result<(), ConfigError> {
    if !(1.0..=MAX_ROPE_FACTOR).contains(&factor) {
        let expected = format!("a number from 1 to {MAX_ROPE_FACTOR}");
        return Err(ConfigError::invalid(field, expected, factor));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> DecoderConfig {
        DecoderConfig {
            vocab_size: 256,
            hidden_size: 32,
            intermediate_size: 64,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 128,
            rms_norm_eps: 1e-5,
            norm_offset: 0.0,
            hidden_act: Activation::Silu,
            tie_word_embeddings: true,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            post_norms: false,
            query_scale: 0.35,
            embedding_scale: 1.0,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            ropes: vec![RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default }],
            layers: vec![LayerConfig { sliding_window: None, rope: Some(0) }; 2],
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
        }
    }

    #[test]
    fn each_field_out_of_bounds_is_named() {
        valid().validate().unwrap();
        type Break = fn(&mut DecoderConfig);
        let breaks: &[(&str, Break)] = &[
            ("vocab_size", |c| c.vocab_size = 0),
            ("hidden_size", |c| c.hidden_size = usize::MAX),
            ("intermediate_size", |c| c.intermediate_size = 0),
            ("num_attention_heads", |c| c.num_attention_heads = 0),
            ("num_key_value_heads", |c| c.num_key_value_heads = 0),
            ("num_key_value_heads", |c| c.num_key_value_heads = 3),
            ("num_key_value_heads", |c| c.num_key_value_heads = 8),
            ("head_dim", |c| c.head_dim = 7),
            ("head_dim", |c| c.head_dim = 1 << 20),
            ("max_position_embeddings", |c| c.max_position_embeddings = 0),
            ("rms_norm_eps", |c| c.rms_norm_eps = f32::NAN),
            ("rms_norm_eps", |c| c.rms_norm_eps = 0.0),
            ("norm_offset", |c| c.norm_offset = f32::INFINITY),
            ("query_scale", |c| c.query_scale = f32::NAN),
            ("embedding_scale", |c| c.embedding_scale = -1.0),
            ("attn_logit_softcapping", |c| c.attn_logit_softcapping = Some(0.0)),
            ("final_logit_softcapping", |c| c.final_logit_softcapping = Some(f32::NAN)),
            ("ropes[0].theta", |c| c.ropes[0].theta = f64::NAN),
            ("ropes[0].theta", |c| c.ropes[0].theta = 1.0),
            ("ropes[0].factor", |c| c.ropes[0].scaling = RopeScaling::Linear { factor: 0.5 }),
            ("ropes", |c| c.ropes = vec![c.ropes[0]; 100]),
            ("layers", |c| c.layers.clear()),
            ("layers", |c| c.layers = vec![c.layers[0]; MAX_NUM_HIDDEN_LAYERS + 1]),
            ("layers[1].rope", |c| c.layers[1].rope = Some(1)),
            ("layers[0].sliding_window", |c| c.layers[0].sliding_window = Some(0)),
            ("bos_token_id", |c| c.bos_token_id = Some(256)),
            ("eos_token_id", |c| c.eos_token_ids = vec![2, 300]),
            ("eos_token_ids", |c| c.eos_token_ids = vec![2; 65]),
        ];
        for (field, change) in breaks {
            let mut config = valid();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(&format!("{field}: expected")), "{field}: {message}");
        }
    }

    #[test]
    fn the_llama3_ramp_must_rise() {
        let scaling = |factor, low_freq_factor, high_freq_factor, original| RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        };
        for (field, scaling) in [
            ("factor", scaling(f64::NAN, 1.0, 4.0, 8192)),
            ("low_freq_factor", scaling(8.0, 0.0, 4.0, 8192)),
            ("high_freq_factor", scaling(8.0, 4.0, 4.0, 8192)),
            ("high_freq_factor", scaling(8.0, 1.0, f64::NAN, 8192)),
            ("original_max_position_embeddings", scaling(8.0, 1.0, 4.0, 0)),
        ] {
            let mut config = valid();
            config.ropes[0].scaling = scaling;
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(&format!("ropes[0].{field}: ")), "{message}");
        }
    }
}
