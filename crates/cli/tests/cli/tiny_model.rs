//! A model of a few thousand random numbers with a tokenizer of single bytes, written in the Hugging Face layout.

use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

const VOCAB: usize = 256;
const HIDDEN: usize = 16;
const INTERMEDIATE: usize = 24;
const LAYERS: usize = 2;
/// Longest row: the method's template is some forty bytes long.
const MAX_POSITIONS: usize = 256;

/// Writes the model; another `seed` makes another model.
pub(crate) fn write(dir: &Path, seed: u64) {
    write_for_rows_of(dir, seed, MAX_POSITIONS);
}

/// As [`write()`], for rows of up to `max_positions` tokens.
pub(crate) fn write_for_rows_of(dir: &Path, seed: u64, max_positions: usize) {
    fs::create_dir_all(dir).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    fs::write(dir.join("model.safetensors"), weights(seed)).unwrap();
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}\
                    {{ strftime_now('%%') }}{% if add_generation_prompt %}assistant: {% endif %}";
    fs::write(dir.join("tokenizer_config.json"), json!({"chat_template": template}).to_string()).unwrap();
}

/// Byte-level BPE without merges: one token for each byte.
fn tokenizer() -> Value {
    // GPT-2 writes a printable byte as itself and the n-th other one as the character 256 + n.
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut vocab = Map::new();
    let mut other = 256;
    for byte in 0..256 {
        let code = if printable(byte) {
            byte
        } else {
            other += 1;
            other - 1
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    })
}

fn weights(seed: u64) -> Vec<u8> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![8, HIDDEN]),
            ("self_attn.v_proj", vec![8, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    let (mut header, mut data) = (Map::new(), Vec::<u8>::new());
    // xorshift (Marsaglia 2003), for numbers between -0.5 and 0.5
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for (name, shape) in shapes {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let number = (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
            let number = if shape.len() == 1 { 1.0 + 0.1 * number } else { number };
            data.extend(number.to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}
