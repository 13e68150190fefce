//! `config.json` as written by `transformers`, with the defaults of its configuration classes.

use serde_json::{Map, Value};

use super::class_defaults::{ClassDefaults, GEMMA2, GEMMA3, LLAMA, MISTRAL, QWEN, SMOLLM3};
use super::fields::Fields;
use super::rope::read_ropes;
use super::set_layers;
use crate::model::config::validate::{MAX_NUM_HIDDEN_LAYERS, count};
use crate::model::config::{Activation, ConfigError, DecoderConfig};

const MAX_JSON_BYTES: usize = 4 << 20;

const MODEL_TYPES: &[&str] = &["gemma2", "gemma3", "gemma3_text", "llama", "mistral", "qwen2", "qwen3", "smollm3"];

/// Keys that do not change what the decoder computes.
#[rustfmt::skip]
const IGNORED_KEYS: &[&str] = &[
    // bookkeeping
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash",
    "_flash_attn_2_enabled", "_name_or_path", "_sliding_window_pattern", "architectures",
    "auto_map", "dtype", "finetuning_task", "is_llama_config", "model_type", "name_or_path",
    "tokenizer_class", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_bfloat16",
    // training
    "attention_dropout", "hidden_dropout", "initializer_range", "pretraining_tp",
    // other heads and tasks
    "boi_token_index", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "eoi_token_index", "id2label", "image_token_index", "is_decoder",
    "label2id", "mm_tokens_per_image", "pad_token_id", "prefix", "problem_type", "pruned_heads",
    "sep_token_id", "task_specific_params", "tie_encoder_decoder", "tf_legacy_loss",
    "vision_config",
    // what a forward call returns, and how text is generated
    "bad_words_ids", "begin_suppress_tokens", "cache_implementation", "diversity_penalty",
    "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_scores", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
    "use_cache",
];

/// Reads the text of a `config.json`; the result is validated.
///
/// # Errors
/// [`ConfigError`], naming the key: text that is not JSON, an unknown `model_type` or key, a missing or
/// out-of-bounds value, or one that asks for something the decoder does not compute.
pub fn config_from_json(json: &str) -> Result<DecoderConfig, ConfigError> {
    if json.len() > MAX_JSON_BYTES {
        return Err(ConfigError::TooLarge { expected: MAX_JSON_BYTES, found: json.len() });
    }
    let entries: Map<String, Value> = serde_json::from_str(json)?;
    let mut fields = Fields::new(entries, "");
    let Some(model_type) = fields.string("model_type")? else {
        let expected = format!("one of {}", MODEL_TYPES.join(", "));
        return Err(ConfigError::Missing { key: "model_type".into(), expected });
    };
    fields.only("is_encoder_decoder", false)?;
    fields.only("add_cross_attention", false)?;
    if fields.take("quantization_config").is_some() {
        let expected = "no quantisation; quantised weights are read from GGUF files";
        return Err(ConfigError::invalid("quantization_config", expected, "one"));
    }
    let config = match model_type.as_str() {
        "llama" => llama(&mut fields)?,
        "mistral" => mistral(&mut fields)?,
        "qwen2" => qwen(&mut fields, "qwen2")?,
        "qwen3" => qwen(&mut fields, "qwen3")?,
        "gemma2" => gemma2(&mut fields)?,
        "gemma3_text" => gemma3(&mut fields)?,
        "gemma3" => gemma3_nested(&mut fields)?,
        "smollm3" => smollm3(&mut fields)?,
        _ => {
            return Err(ConfigError::UnknownModelType {
                key: "model_type",
                known: MODEL_TYPES.join(", "),
                found: model_type.chars().take(80).collect(),
            });
        }
    };
    fields.finish(IGNORED_KEYS, &model_type)?;
    config.validate()?;
    Ok(config)
}

/// Biases, switches and layers of Llama 1, 2 and 3.
fn llama(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let (mut config, num_layers) = common(fields, &LLAMA, "hidden_act")?;
    fields.only("rope_interleaved", false)?;
    attention_bias(fields, &mut config)?;
    config.mlp_bias = fields.bool("mlp_bias", false)?;
    let ropes = read_ropes(fields, LLAMA.theta, config.max_position_embeddings, "llama")?;
    set_layers(&mut config, &vec![false; num_layers], None, ropes, |_| true)?;
    Ok(config)
}

/// Every layer has the sliding window, if there is one.
fn mistral(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let (mut config, num_layers) = common(fields, &MISTRAL, "hidden_act")?;
    let window = fields.nullable_usize("sliding_window", Some(4096))?;
    let ropes = read_ropes(fields, MISTRAL.theta, config.max_position_embeddings, "mistral")?;
    set_layers(&mut config, &vec![window.is_some(); num_layers], window, ropes, |_| true)?;
    Ok(config)
}

/// Layers from `max_window_layers` on have the sliding window, if it is in use.
fn qwen(fields: &mut Fields, model_type: &str) -> Result<DecoderConfig, ConfigError> {
    let has_qk_norm = model_type == "qwen3";
    let defaults = ClassDefaults { head_dim: has_qk_norm.then_some(128), ..QWEN };
    let (mut config, num_layers) = common(fields, &defaults, "hidden_act")?;
    if has_qk_norm {
        config.qk_norm = true;
        attention_bias(fields, &mut config)?;
    } else {
        config.qkv_bias = true;
        fields.only("use_mrope", false)?;
    }
    let in_use = fields.bool("use_sliding_window", false)?;
    let window = fields.nullable_usize("sliding_window", Some(4096))?.filter(|_| in_use);
    let max_window_layers = fields.required_usize("max_window_layers", Some(28))?;
    let sliding = layer_types(fields, num_layers, |index| window.is_some() && index >= max_window_layers)?;
    let ropes = read_ropes(fields, defaults.theta, config.max_position_embeddings, model_type)?;
    set_layers(&mut config, &sliding, window, ropes, |_| true)?;
    Ok(config)
}

/// Some layers have no positions; those may have a sliding window instead.
fn smollm3(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let (mut config, num_layers) = common(fields, &SMOLLM3, "hidden_act")?;
    attention_bias(fields, &mut config)?;
    config.mlp_bias = fields.bool("mlp_bias", false)?;
    // Written by the class's parent, read by nobody.
    fields.usize("max_window_layers")?;
    let interval = fields.required_usize("no_rope_layer_interval", Some(4))?;
    count("no_rope_layer_interval", interval, usize::MAX)?;
    let listed = fields.list("no_rope_layers", "a list of 0 and 1", |value| match value.as_u64() {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => None,
    })?;
    let has_rope = match listed {
        Some(listed) if listed.len() < num_layers => {
            let expected = format!("at least {num_layers} entries");
            return Err(ConfigError::invalid("no_rope_layers", expected, listed.len()));
        }
        Some(listed) => listed,
        None => (1..=num_layers).map(|number| !number.is_multiple_of(interval)).collect(),
    };
    let in_use = fields.bool("use_sliding_window", false)?;
    let window = fields.usize("sliding_window")?.filter(|_| in_use);
    let sliding = layer_types(fields, num_layers, |index| window.is_some() && !has_rope[index])?;
    let ropes = read_ropes(fields, SMOLLM3.theta, config.max_position_embeddings, "smollm3")?;
    set_layers(&mut config, &sliding, window, ropes, |index| has_rope[index])?;
    Ok(config)
}

/// Every second layer sees all keys.
fn gemma2(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let (mut config, num_layers) = gemma_common(fields, &GEMMA2, Some((50.0, 30.0)))?;
    // Written beside `sliding_window` and read by nobody.
    fields.usize("sliding_window_size")?;
    let window = fields.nullable_usize("sliding_window", Some(4096))?;
    let sliding = layer_types(fields, num_layers, |index| index.is_multiple_of(2))?;
    let ropes = read_ropes(fields, GEMMA2.theta, config.max_position_embeddings, "gemma2")?;
    set_layers(&mut config, &sliding, window, ropes, |_| true)?;
    Ok(config)
}

/// Every sixth layer sees all keys, with a rotary base of its own; heads of q and k are normalised.
fn gemma3(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let (mut config, num_layers) = gemma_common(fields, &GEMMA3, None)?;
    config.qk_norm = true;
    let window = fields.nullable_usize("sliding_window", Some(4096))?;
    let pattern = fields.required_usize("sliding_window_pattern", Some(6))?;
    count("sliding_window_pattern", pattern, usize::MAX)?;
    let sliding = layer_types(fields, num_layers, |index| !(index + 1).is_multiple_of(pattern))?;
    let ropes = read_ropes(fields, GEMMA3.theta, config.max_position_embeddings, "gemma3_text")?;
    set_layers(&mut config, &sliding, window, ropes, |_| true)?;
    Ok(config)
}

/// The language model of a model that also sees images; ids at the top win over those inside.
fn gemma3_nested(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let Some(mut text) = fields.object("text_config")? else {
        let expected = "an object".into();
        return Err(ConfigError::Missing { key: "text_config".into(), expected });
    };
    for key in ["bos_token_id", "eos_token_id", "tie_word_embeddings"] {
        if let Some(value) = fields.take(key) {
            text.set(key, value);
        }
    }
    let config = gemma3(&mut text)?;
    text.finish(IGNORED_KEYS, "gemma3_text")?;
    Ok(config)
}

/// What the Gemma families share. `caps`: defaults of the soft caps on scores and on logits.
fn gemma_common(
    fields: &mut Fields,
    defaults: &ClassDefaults,
    caps: Option<(f64, f64)>,
) -> Result<(DecoderConfig, usize), ConfigError> {
    // Old files name a second activation, which no code reads.
    fields.string("hidden_act")?;
    let (mut config, num_layers) = common(fields, defaults, "hidden_activation")?;
    attention_bias(fields, &mut config)?;
    fields.only("use_bidirectional_attention", false)?;
    let query_pre_attn_scalar = fields.f64("query_pre_attn_scalar")?.unwrap_or(256.0);
    if query_pre_attn_scalar <= 0.0 {
        let expected = "a number above 0";
        return Err(ConfigError::invalid("query_pre_attn_scalar", expected, query_pre_attn_scalar));
    }
    config.query_scale = query_pre_attn_scalar.powf(-0.5) as f32;
    config.embedding_scale = (config.hidden_size as f64).sqrt() as f32;
    config.norm_offset = 1.0;
    config.post_norms = true;
    let (attn, last) = (caps.map(|caps| caps.0), caps.map(|caps| caps.1));
    config.attn_logit_softcapping = fields.nullable_f64("attn_logit_softcapping", attn)?.map(|cap| cap as f32);
    config.final_logit_softcapping = fields.nullable_f64("final_logit_softcapping", last)?.map(|cap| cap as f32);
    Ok((config, num_layers))
}

/// The fields that every family has, and the number of layers, which is within bounds.
fn common(
    fields: &mut Fields,
    defaults: &ClassDefaults,
    activation_key: &str,
) -> Result<(DecoderConfig, usize), ConfigError> {
    let num_layers = fields.required_usize("num_hidden_layers", None)?;
    count("num_hidden_layers", num_layers, MAX_NUM_HIDDEN_LAYERS)?;
    let hidden_size = fields.required_usize("hidden_size", None)?;
    let num_attention_heads = fields.required_usize("num_attention_heads", defaults.num_attention_heads)?;
    count("num_attention_heads", num_attention_heads, usize::MAX)?;
    let num_key_value_heads =
        fields.nullable_usize("num_key_value_heads", defaults.num_key_value_heads)?.unwrap_or(num_attention_heads);
    let head_dim = match fields.usize("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
        None => {
            let expected = format!("a multiple of num_attention_heads = {num_attention_heads}");
            return Err(ConfigError::invalid(fields.path("hidden_size"), expected, hidden_size));
        }
    };
    let config = DecoderConfig {
        vocab_size: fields.required_usize("vocab_size", defaults.vocab_size)?,
        hidden_size,
        intermediate_size: fields.required_usize("intermediate_size", None)?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        max_position_embeddings: fields
            .required_usize("max_position_embeddings", Some(defaults.max_position_embeddings))?,
        rms_norm_eps: fields.f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        norm_offset: 0.0,
        hidden_act: activation(fields, activation_key)?,
        tie_word_embeddings: fields.bool("tie_word_embeddings", defaults.tie_word_embeddings)?,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        post_norms: false,
        query_scale: (head_dim as f64).powf(-0.5) as f32,
        embedding_scale: 1.0,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        ropes: Vec::new(),
        layers: Vec::new(),
        bos_token_id: bos_token_id(fields, defaults.bos_token_id)?,
        eos_token_ids: eos_token_ids(fields, defaults.eos_token_id)?,
    };
    Ok((config, num_layers))
}

fn activation(fields: &mut Fields, key: &str) -> Result<Activation, ConfigError> {
    match (fields.string(key)?.as_deref(), key) {
        (Some("silu"), _) | (None, "hidden_act") => Ok(Activation::Silu),
        (Some("gelu_pytorch_tanh"), _) | (None, _) => Ok(Activation::GeluTanh),
        (Some(other), _) => Err(ConfigError::invalid(fields.path(key), "`silu` or `gelu_pytorch_tanh`", other)),
    }
}

/// `attention_bias` is on all four projections of attention.
fn attention_bias(fields: &mut Fields, config: &mut DecoderConfig) -> Result<(), ConfigError> {
    let bias = fields.bool("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    Ok(())
}

/// Which layers have a sliding window: `layer_types`, else `default` of the layer's index.
fn layer_types(
    fields: &mut Fields,
    num_layers: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ConfigError> {
    let expected = "a list of `full_attention` and `sliding_attention`";
    let listed = fields.list("layer_types", expected, |value| match value.as_str()? {
        "full_attention" => Some(false),
        "sliding_attention" => Some(true),
        _ => None,
    })?;
    match listed {
        Some(listed) if listed.len() != num_layers => {
            let expected = format!("num_hidden_layers = {num_layers} entries");
            Err(ConfigError::invalid(fields.path("layer_types"), expected, listed.len()))
        }
        Some(listed) => Ok(listed),
        None => Ok((0..num_layers).map(default).collect()),
    }
}

fn bos_token_id(fields: &mut Fields, default: Option<u32>) -> Result<Option<u32>, ConfigError> {
    if !fields.contains("bos_token_id") {
        return Ok(default);
    }
    match fields.token_ids("bos_token_id")?.as_deref() {
        None => Ok(None),
        Some([id]) => Ok(Some(*id)),
        Some(ids) => Err(ConfigError::invalid(fields.path("bos_token_id"), "one token id", ids.len())),
    }
}

fn eos_token_ids(fields: &mut Fields, default: Option<u32>) -> Result<Vec<u32>, ConfigError> {
    if !fields.contains("eos_token_id") {
        return Ok(default.into_iter().collect());
    }
    Ok(fields.token_ids("eos_token_id")?.unwrap_or_default())
}
