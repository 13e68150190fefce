//! Descriptions of real models, read into decoder configurations; and descriptions that lie.

use std::collections::HashMap;

use lapidary::model::config::{Activation, ConfigError, DecoderConfig, RopeConfig, RopeScaling};
use lapidary::model::hf::config_from_json;
use lapidary::model::hf::{GgufMetadata, config_from_gguf};
use proptest::prelude::*;
use serde_json::{Value, json};

fn read(json: &Value) -> Result<DecoderConfig, ConfigError> {
    config_from_json(&json.to_string())
}

/// `base` with the keys of `changes` put in; `null` stays in as `null`.
fn with(base: &Value, changes: Value) -> Value {
    let mut changed = base.clone();
    for (key, value) in changes.as_object().unwrap() {
        changed[key] = value.clone();
    }
    changed
}

fn without(base: &Value, key: &str) -> Value {
    let mut changed = base.clone();
    changed.as_object_mut().unwrap().remove(key);
    changed
}

fn smollm2() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
        "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
        "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152
    })
}

fn llama3() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256
    })
}

fn mistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000
    })
}

fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936
    })
}

fn qwen3() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
        "vocab_size": 151936
    })
}

fn gemma2() -> Value {
    json!({
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid",
        "eos_token_id": [1, 107], "final_logit_softcapping": 30.0, "head_dim": 128,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 4608, "initializer_range": 0.02, "intermediate_size": 36864,
        "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 32,
        "num_hidden_layers": 46, "num_key_value_heads": 16, "pad_token_id": 0,
        "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
        "sliding_window": 4096, "sliding_window_size": 4096, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.0.dev0", "use_cache": true, "vocab_size": 256000,
        "_attn_implementation": "eager"
    })
}

fn gemma3() -> Value {
    json!({
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": null,
        "bos_token_id": 2, "eos_token_id": 1, "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "initializer_range": 0.02,
        "intermediate_size": 2048, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0, "rope_scaling": null, "rope_theta": 1000000.0,
        "sliding_window": 512, "torch_dtype": "bfloat16", "transformers_version": "4.55.0.dev0",
        "use_bidirectional_attention": false, "use_cache": true, "vocab_size": 262144
    })
}

fn smollm3() -> Value {
    let no_rope_layers: Vec<u8> = (1..=36).map(|n| u8::from(n % 4 != 0)).collect();
    json!({
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": null, "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 11008,
        "layer_types": vec!["full_attention"; 36], "max_position_embeddings": 65536,
        "max_window_layers": 28, "mlp_bias": false, "model_type": "smollm3",
        "no_rope_layer_interval": 4, "no_rope_layers": no_rope_layers, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004,
        "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": null,
        "rope_theta": 5000000.0, "sliding_window": null, "torch_dtype": "bfloat16",
        "transformers_version": "4.54.0.dev0", "use_cache": false, "use_sliding_window": false,
        "vocab_size": 128256
    })
}

fn all() -> Vec<Value> {
    vec![smollm2(), llama3(), mistral(), qwen2(), qwen3(), gemma2(), gemma3(), smollm3()]
}

fn plain(theta: f64) -> RopeConfig {
    RopeConfig { theta, scaling: RopeScaling::Default }
}

fn windows(config: &DecoderConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.sliding_window).collect()
}

#[test]
fn llama_with_and_without_its_rope_scaling() {
    let config = read(&smollm2()).unwrap();
    assert_eq!((config.layers.len(), config.head_dim), (30, 64));
    assert_eq!(config.ropes, [plain(100_000.0)]);
    assert_eq!(config.query_scale, 0.125);
    assert!(config.tie_word_embeddings && !config.qkv_bias && !config.qk_norm);
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(1), vec![2]));

    let config = read(&llama3()).unwrap();
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(config.ropes, [RopeConfig { theta: 500_000.0, scaling }]);
    assert_eq!(config.eos_token_ids, [128_001, 128_008, 128_009]);

    let biased = with(&smollm2(), json!({"attention_bias": true, "mlp_bias": true}));
    let config = read(&biased).unwrap();
    assert!(config.qkv_bias && config.o_bias && config.mlp_bias);
    let linear = with(&smollm2(), json!({"rope_scaling": {"type": "linear", "factor": 2.0}}));
    let scaling = RopeScaling::Linear { factor: 2.0 };
    assert_eq!(read(&linear).unwrap().ropes, [RopeConfig { theta: 100_000.0, scaling }]);
}

#[test]
fn mistral_windows_tell_null_from_absent() {
    let window = |json: &Value| windows(&read(json).unwrap())[31];
    assert_eq!(window(&mistral()), Some(4096));
    assert_eq!(window(&with(&mistral(), json!({"sliding_window": null}))), None);
    assert_eq!(window(&without(&mistral(), "sliding_window")), Some(4096));
}

#[test]
fn qwen_has_biases_or_head_norms_and_windows_on_top() {
    let config = read(&qwen2()).unwrap();
    assert!(config.qkv_bias && !config.o_bias && !config.qk_norm);
    assert!(windows(&config).iter().all(Option::is_none));
    let config = read(&with(&qwen2(), json!({"use_sliding_window": true}))).unwrap();
    assert_eq!(windows(&config)[20..22], [None, Some(32768)]);

    let config = read(&qwen3()).unwrap();
    assert!(config.qk_norm && !config.qkv_bias);
    assert_eq!(config.head_dim, 128);
    assert_eq!(read(&without(&qwen3(), "head_dim")).unwrap().head_dim, 128);
}

#[test]
fn gemma2_alternates() {
    let config = read(&gemma2()).unwrap();
    assert_eq!(windows(&config)[..3], [Some(4096), None, Some(4096)]);
    assert_eq!(config.query_scale, (1.0 / 12.0) as f32);
    assert_eq!(config.embedding_scale, 67.882_25);
    assert_eq!((config.attn_logit_softcapping, config.final_logit_softcapping), (Some(50.0), Some(30.0)));
    assert_eq!((config.norm_offset, config.hidden_act), (1.0, Activation::GeluTanh));
    assert!(config.post_norms && config.tie_word_embeddings && !config.qk_norm);
    let uncapped = with(&gemma2(), json!({"attn_logit_softcapping": null}));
    assert_eq!(read(&uncapped).unwrap().attn_logit_softcapping, None);
}

#[test]
fn gemma3_old_and_new_spellings_agree() {
    let config = read(&gemma3()).unwrap();
    assert_eq!(windows(&config)[4..7], [Some(512), None, Some(512)]);
    assert_eq!(config.ropes, [plain(10_000.0), plain(1_000_000.0)]);
    assert_eq!((config.layers[5].rope, config.layers[6].rope), (Some(1), Some(0)));
    assert_eq!((config.query_scale, config.embedding_scale), (0.0625, 25.298_221));

    let mut new = gemma3();
    for key in ["rope_theta", "rope_scaling", "rope_local_base_freq"] {
        new = without(&new, key);
    }
    let types: Vec<_> = (1..=18).map(|n| if n % 6 == 0 { "full_attention" } else { "sliding_attention" }).collect();
    let new = with(
        &new,
        json!({
            "layer_types": types, "dtype": "bfloat16",
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}
            }
        }),
    );
    assert_eq!(read(&new).unwrap(), config);

    let scaled = json!({"rope_scaling": {"factor": 8.0, "rope_type": "linear"}});
    let scaling = RopeScaling::Linear { factor: 8.0 };
    let expected = [plain(10_000.0), RopeConfig { theta: 1_000_000.0, scaling }];
    assert_eq!(read(&with(&gemma3(), scaled)).unwrap().ropes, expected);
}

#[test]
fn gemma3_with_images_gives_its_language_model() {
    let nested = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024
        },
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152}
    });
    let config = read(&nested).unwrap();
    assert_eq!((config.vocab_size, config.num_attention_heads, config.head_dim), (262_208, 8, 256));
    assert_eq!(config.eos_token_ids, [1, 106]);
    let mut unknown = nested;
    unknown["text_config"]["alibi"] = true.into();
    let message = read(&unknown).unwrap_err().to_string();
    assert_eq!(message, "text_config.alibi: unknown key for model type `gemma3_text`");
}

#[test]
fn smollm3_leaves_positions_out_of_every_fourth_layer() {
    let config = read(&smollm3()).unwrap();
    let ropes: Vec<_> = config.layers[..5].iter().map(|layer| layer.rope).collect();
    assert_eq!(ropes, [Some(0), Some(0), Some(0), None, Some(0)]);
    assert_eq!(config.bos_token_id, None);
    assert_eq!(read(&without(&smollm3(), "no_rope_layers")).unwrap(), config);
}

#[test]
fn what_is_not_understood_is_an_error_that_names_it() {
    let error = |changes: Value| read(&with(&smollm2(), changes)).unwrap_err().to_string();
    for (changes, expected) in [
        (
            json!({"model_type": "mamba"}),
            "model_type: expected one of gemma2, gemma3, gemma3_text, llama, mistral, qwen2, qwen3, smollm3, found `mamba`",
        ),
        (json!({"num_experts": 8}), "num_experts: unknown key for model type `llama`"),
        (json!({"hidden_act": "gelu_new"}), "hidden_act: expected `silu` or `gelu_pytorch_tanh`, found gelu_new"),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            "rope_scaling.rope_type: expected `default`, `linear` or `llama3`, found yarn",
        ),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "rope_scaling.factor: missing, expected a number"),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2, "x": 1}}),
            "rope_scaling.x: unknown key for model type `llama`",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": -2}}),
            "ropes[0].factor: expected a number from 1 to 1000000, found -2",
        ),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor: expected 1, found 0.5"),
        (json!({"rope_interleaved": true}), "rope_interleaved: expected false, found true"),
        (
            json!({"quantization_config": {}}),
            "quantization_config: expected no quantisation; quantised weights are read from GGUF files, found one",
        ),
        (json!({"num_hidden_layers": 1e9 as u64}), "num_hidden_layers: expected 1 to 1024, found 1000000000"),
        (json!({"num_hidden_layers": -1}), "num_hidden_layers: expected a whole number, found -1"),
        (json!({"vocab_size": "many"}), "vocab_size: expected a whole number, found \"many\""),
        (json!({"num_attention_heads": 0}), "num_attention_heads: expected 1 to 18446744073709551615, found 0"),
        (
            json!({"num_key_value_heads": 2}),
            "num_key_value_heads: expected a divisor of num_attention_heads = 9, found 2",
        ),
        (json!({"rms_norm_eps": 0}), "rms_norm_eps: expected a number above 0, at most 1, found 0"),
        (json!({"rms_norm_eps": 1e300}), "rms_norm_eps: expected a number above 0, at most 1, found inf"),
        (json!({"hidden_size": null}), "hidden_size: missing, expected a whole number"),
        (json!({"eos_token_id": 49152}), "eos_token_id: expected a token below vocab_size = 49152, found 49152"),
        (json!({"use_sliding_window": false}), "use_sliding_window: unknown key for model type `llama`"),
    ] {
        assert_eq!(error(changes), expected);
    }
    let error = |base: Value, changes: Value| read(&with(&base, changes)).unwrap_err().to_string();
    let types = json!({"layer_types": vec!["sliding_attention"; 28]});
    assert_eq!(
        error(qwen3(), types),
        "sliding_window: missing, expected a window for layer 0, which has sliding attention"
    );
    let bidirectional = json!({"use_bidirectional_attention": true});
    assert!(error(gemma3(), bidirectional).starts_with("use_bidirectional_attention: expected false"));
    assert!(error(gemma3(), json!({"query_pre_attn_scalar": 0})).starts_with("query_pre_attn_scalar"));
    assert!(error(gemma3(), json!({"sliding_window_pattern": 0})).starts_with("sliding_window_pattern"));
    assert!(error(smollm3(), json!({"no_rope_layers": [1, 0]})).starts_with("no_rope_layers"));
    for json in ["", "[]", "{}", "NaN", r#"{"model_type": "llama", "rope_theta": NaN}"#, "\u{0}"] {
        config_from_json(json).unwrap_err();
    }
    assert!(matches!(config_from_json(&" ".repeat(5 << 20)), Err(ConfigError::TooLarge { .. })));
}

/// Values that files have been seen to lie with.
fn hostile() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..70_000_i64).prop_map(Value::from),
        prop_oneof![Just(0.0), Just(-1.0), Just(1e308), Just(1e-308)].prop_map(Value::from),
        "[a-z0-9_]{0,12}".prop_map(Value::from),
        proptest::collection::vec(any::<u64>(), 0..40).prop_map(Value::from),
        proptest::collection::vec(Just("sliding_attention"), 0..40).prop_map(Value::from),
        Just(json!({"rope_type": "llama3", "factor": 1e300, "low_freq_factor": 0, "high_freq_factor": -1})),
        Just(json!({"full_attention": {"rope_theta": -1}, "sliding_attention": null})),
        Just(json!({"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": u64::MAX})),
    ]
}

proptest! {
    #[test]
    fn mutated_json_never_panics_and_what_passes_is_valid(
        base in 0..8_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), hostile()), 1..4),
        cut in proptest::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut json = all().swap_remove(base);
        let keys: Vec<String> = json.as_object().unwrap().keys().cloned().collect();
        for (index, value) in changes {
            json[index.get(&keys)] = value;
        }
        let mut text = json.to_string();
        if let Some(cut) = cut {
            text.truncate(cut.index(text.len()));
        }
        if let Ok(config) = config_from_json(&text) {
            prop_assert!(config.validate().is_ok());
        }
    }

    #[test]
    fn lying_metadata_never_panics(
        base in 0..2_usize,
        key in any::<prop::sample::Index>(),
        value in hostile(),
    ) {
        let mut fake = if base == 0 { smollm2_gguf() } else { gemma3_gguf() };
        let mut keys: Vec<&'static str> = fake.values.keys().copied().collect();
        keys.sort_unstable();
        let key: &'static str = keys[key.index(keys.len())];
        fake.values.insert(key, value);
        if let Ok(config) = config_from_gguf(&fake) {
            prop_assert!(config.validate().is_ok());
        }
    }
}

/// Metadata in memory: arrays are given by their length, tensors by name.
#[derive(Clone)]
struct Fake {
    values: HashMap<&'static str, Value>,
    arrays: HashMap<&'static str, usize>,
    tensors: Vec<&'static str>,
    rope_freqs: Option<Vec<f32>>,
}

impl GgufMetadata for Fake {
    fn u64(&self, key: &str) -> Option<u64> {
        self.values.get(key)?.as_u64()
    }
    fn f64(&self, key: &str) -> Option<f64> {
        self.values.get(key)?.as_f64()
    }
    fn bool(&self, key: &str) -> Option<bool> {
        self.values.get(key)?.as_bool()
    }
    fn str(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.as_str()
    }
    fn array_len(&self, key: &str) -> Option<usize> {
        self.arrays.get(key).copied().or_else(|| Some(self.values.get(key)?.as_array()?.len()))
    }
    fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains(&name) || (name == "rope_freqs.weight" && self.rope_freqs.is_some())
    }
    fn f32_tensor(&self, name: &str) -> Option<Vec<f32>> {
        self.rope_freqs.clone().filter(|_| name == "rope_freqs.weight")
    }
}

/// As dumped by the Python package `gguf` from SmolLM2-135M-Instruct.Q4_1.gguf.
fn smollm2_gguf() -> Fake {
    Fake {
        values: HashMap::from([
            ("general.architecture", json!("llama")),
            ("llama.block_count", json!(30)),
            ("llama.context_length", json!(8192)),
            ("llama.embedding_length", json!(576)),
            ("llama.feed_forward_length", json!(1536)),
            ("llama.attention.head_count", json!(9)),
            ("llama.attention.head_count_kv", json!(3)),
            ("llama.rope.freq_base", json!(100000.0)),
            ("llama.attention.layer_norm_rms_epsilon", json!(9.999999747378752e-06)),
            ("llama.vocab_size", json!(49152)),
            ("llama.rope.dimension_count", json!(64)),
            ("tokenizer.ggml.bos_token_id", json!(1)),
            ("tokenizer.ggml.eos_token_id", json!(2)),
        ]),
        arrays: HashMap::from([("tokenizer.ggml.tokens", 49152)]),
        tensors: vec!["token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight"],
        rope_freqs: None,
    }
}

/// As dumped by the Python package `gguf` from gemma-3-270m-q4_k_m.gguf.
fn gemma3_gguf() -> Fake {
    Fake {
        values: HashMap::from([
            ("general.architecture", json!("gemma3")),
            ("gemma3.context_length", json!(32768)),
            ("gemma3.embedding_length", json!(640)),
            ("gemma3.block_count", json!(18)),
            ("gemma3.feed_forward_length", json!(2048)),
            ("gemma3.attention.head_count", json!(4)),
            ("gemma3.attention.layer_norm_rms_epsilon", json!(9.999999974752427e-07)),
            ("gemma3.attention.key_length", json!(256)),
            ("gemma3.attention.value_length", json!(256)),
            ("gemma3.rope.freq_base", json!(1000000.0)),
            ("gemma3.attention.sliding_window", json!(512)),
            ("gemma3.attention.head_count_kv", json!(1)),
            ("tokenizer.ggml.bos_token_id", json!(2)),
            ("tokenizer.ggml.eos_token_id", json!(1)),
        ]),
        arrays: HashMap::from([("tokenizer.ggml.tokens", 262_144)]),
        tensors: vec!["token_embd.weight", "output_norm.weight", "blk.0.attn_q_norm.weight"],
        rope_freqs: None,
    }
}

#[test]
fn gguf_metadata_and_config_json_describe_the_same_model() {
    assert_eq!(config_from_gguf(&smollm2_gguf()).unwrap(), read(&smollm2()).unwrap());
    let expected = DecoderConfig { norm_offset: 0.0, ..read(&gemma3()).unwrap() };
    assert_eq!(config_from_gguf(&gemma3_gguf()).unwrap(), expected);
}

#[test]
fn gguf_without_tied_head_and_with_biases() {
    let mut fake = smollm2_gguf();
    fake.tensors.extend(["output.weight", "blk.0.attn_q.bias"]);
    let config = config_from_gguf(&fake).unwrap();
    assert!(!config.tie_word_embeddings && config.qkv_bias && !config.o_bias);
}

#[test]
fn gguf_metadata_that_lies_is_named() {
    let error = |key: &'static str, value: Value| {
        let mut fake = smollm2_gguf();
        fake.values.insert(key, value);
        config_from_gguf(&fake).unwrap_err().to_string()
    };
    for (key, value, expected) in [
        (
            "general.architecture",
            json!("rwkv"),
            "general.architecture: expected one of gemma2, gemma3, llama, qwen2, qwen3, smollm3, found `rwkv`",
        ),
        ("llama.expert_count", json!(8), "llama.expert_count: expected no such key, or 0, found 8"),
        (
            "llama.rope.scaling.type",
            json!("yarn"),
            "llama.rope.scaling.type: expected `none` or `linear`, found `yarn`",
        ),
        (
            "llama.rope.dimension_count",
            json!(32),
            "llama.rope.dimension_count: expected 64, the width of a head, found 32",
        ),
        (
            "llama.attention.head_count_kv",
            json!([3, 3]),
            "llama.attention.head_count_kv: expected one whole number, found an array of 2",
        ),
        ("llama.block_count", json!(u64::MAX), "llama.block_count: expected 1 to 1024, found 18446744073709551615"),
        ("llama.block_count", json!(-5), "llama.block_count: expected one whole number, found -5"),
        (
            "llama.vocab_size",
            json!(5),
            "llama.vocab_size: expected 49152, the length of tokenizer.ggml.tokens, found 5",
        ),
        ("llama.attention.causal", json!(false), "llama.attention.causal: expected true, found false"),
    ] {
        assert_eq!(error(key, value), expected);
    }
}

/// The divisors that llama.cpp's converter stores, from the branches of its formula.
fn stored_divisors(factor: f64) -> Vec<f32> {
    (0..32)
        .map(|index| {
            let wavelength = std::f64::consts::TAU / 500_000_f64.powf(-f64::from(index) / 32.0);
            let divisor = if wavelength < 8192.0 / 4.0 {
                1.0
            } else if wavelength > 8192.0 {
                factor
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            divisor as f32
        })
        .collect()
}

#[test]
fn gguf_rope_divisors_are_recognised() {
    let mut fake = smollm2_gguf();
    fake.values.insert("llama.rope.freq_base", json!(500000.0));
    fake.rope_freqs = Some(stored_divisors(32.0));
    assert_eq!(config_from_gguf(&fake).unwrap().ropes, read(&llama3()).unwrap().ropes);

    for change in [0.5_f32, f32::NAN, f32::INFINITY, -1.0] {
        let mut wrong = fake.clone();
        wrong.rope_freqs.as_mut().unwrap()[3] = change;
        let message = config_from_gguf(&wrong).unwrap_err().to_string();
        assert!(message.contains("rope_freqs.weight") || message.contains("ropes[0]"), "{message}");
    }
    fake.rope_freqs.as_mut().unwrap().pop();
    let message = config_from_gguf(&fake).unwrap_err().to_string();
    assert_eq!(message, "rope_freqs.weight: expected 32 numbers, half the width of a head, found 31");
}
