//! How GGUF files name and order the weights that Hugging Face checkpoints name otherwise.

/// The GGUF name of a decoder weight that Hugging Face calls `name`; `None` when decoders have no such weight.
///
/// With `post_norms` (norms after attention and after the MLP, besides those before), GGUF's `ffn_norm` is Hugging
/// Face's `pre_feedforward_layernorm`; without, it is `post_attention_layernorm`.
///
/// The norm weights of GGUF files are those that multiply: an offset of one that a checkpoint leaves to the code has
/// been added by the converter.
pub fn gguf_name(name: &str, post_norms: bool) -> Option<String> {
    let plain = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(plain) = plain {
        return Some(plain.to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok().filter(|parsed: &u32| parsed.to_string() == layer)?;
    let (module, suffix) = rest.rsplit_once('.')?;
    let (gguf_module, may_have_bias) = match module {
        "self_attn.q_proj" => ("attn_q", true),
        "self_attn.k_proj" => ("attn_k", true),
        "self_attn.v_proj" => ("attn_v", true),
        "self_attn.o_proj" => ("attn_output", true),
        "self_attn.q_norm" => ("attn_q_norm", false),
        "self_attn.k_norm" => ("attn_k_norm", false),
        "mlp.gate_proj" => ("ffn_gate", true),
        "mlp.up_proj" => ("ffn_up", true),
        "mlp.down_proj" => ("ffn_down", true),
        "input_layernorm" => ("attn_norm", false),
        "post_attention_layernorm" if post_norms => ("post_attention_norm", false),
        "pre_feedforward_layernorm" if post_norms => ("ffn_norm", false),
        "post_feedforward_layernorm" if post_norms => ("post_ffw_norm", false),
        "post_attention_layernorm" => ("ffn_norm", false),
        _ => return None,
    };
    let known = suffix == "weight" || (suffix == "bias" && may_have_bias);
    known.then(|| format!("blk.{layer}.{gguf_module}.{suffix}"))
}

/// Puts the rows of a query or key projection, as `llama`-architecture GGUF files store them, back into Hugging
/// Face's order.
///
/// Such files interleave the two halves of each head (row `2 j + s` of the file is row `s head_dim / 2 + j` of the
/// checkpoint), so that rotary embeddings turn neighbouring numbers instead of the two halves. Rows are moved whole,
/// so they may be quantised; a bias is a matrix with rows of one number.
///
/// # Shapes
/// `bytes`: `[N * H, row_bytes]` with N = `num_heads` and head_dim H even.
///
/// # Panics
/// When `bytes` is not made of `num_heads` heads with an even number of rows of `row_bytes`.
pub fn unpermute_rows(bytes: &[u8], row_bytes: usize, num_heads: usize) -> Vec<u8> {
    assert!(row_bytes > 0 && num_heads > 0, "expected rows and heads, found {row_bytes} bytes and {num_heads} heads");
    let num_rows = bytes.len() / row_bytes;
    let head_dim = num_rows / num_heads;
    assert!(
        bytes.len() == num_heads * head_dim * row_bytes && head_dim.is_multiple_of(2),
        "expected {num_heads} heads with an even number of rows of {row_bytes} bytes, found {} bytes",
        bytes.len()
    );
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..num_heads {
        for half in 0..2 {
            for j in 0..head_dim / 2 {
                let start = (head * head_dim + 2 * j + half) * row_bytes;
                out.extend_from_slice(&bytes[start..start + row_bytes]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_converter() {
        let cases = [
            ("model.embed_tokens.weight", false, "token_embd.weight"),
            ("model.norm.weight", false, "output_norm.weight"),
            ("lm_head.weight", false, "output.weight"),
            ("model.layers.0.self_attn.q_proj.weight", false, "blk.0.attn_q.weight"),
            ("model.layers.3.self_attn.k_proj.bias", false, "blk.3.attn_k.bias"),
            ("model.layers.29.self_attn.v_proj.weight", false, "blk.29.attn_v.weight"),
            ("model.layers.1.self_attn.o_proj.weight", false, "blk.1.attn_output.weight"),
            ("model.layers.1.self_attn.q_norm.weight", true, "blk.1.attn_q_norm.weight"),
            ("model.layers.1.self_attn.k_norm.weight", true, "blk.1.attn_k_norm.weight"),
            ("model.layers.1.mlp.gate_proj.weight", false, "blk.1.ffn_gate.weight"),
            ("model.layers.1.mlp.up_proj.weight", false, "blk.1.ffn_up.weight"),
            ("model.layers.1.mlp.down_proj.weight", false, "blk.1.ffn_down.weight"),
            ("model.layers.1.input_layernorm.weight", true, "blk.1.attn_norm.weight"),
            ("model.layers.1.post_attention_layernorm.weight", false, "blk.1.ffn_norm.weight"),
            ("model.layers.1.post_attention_layernorm.weight", true, "blk.1.post_attention_norm.weight"),
            ("model.layers.1.pre_feedforward_layernorm.weight", true, "blk.1.ffn_norm.weight"),
            ("model.layers.1.post_feedforward_layernorm.weight", true, "blk.1.post_ffw_norm.weight"),
        ];
        for (name, post_norms, expected) in cases {
            assert_eq!(gguf_name(name, post_norms).as_deref(), Some(expected), "{name}");
        }
        for name in [
            "model.layers.1.pre_feedforward_layernorm.weight",
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.+1.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.scale",
            "model.layers.1.input_layernorm.bias",
            "model.layers.1.mlp",
            "transformer.wte.weight",
            "",
        ] {
            assert_eq!(gguf_name(name, false), None, "{name}");
        }
    }

    #[test]
    fn rows_return_to_their_halves() {
        // Two heads of four rows of two bytes: 0 2 1 3 within each head.
        let stored = [0, 0, 1, 1, 2, 2, 3, 3, 10, 10, 11, 11, 12, 12, 13, 13];
        let expected = [0, 0, 2, 2, 1, 1, 3, 3, 10, 10, 12, 12, 11, 11, 13, 13];
        assert_eq!(unpermute_rows(&stored, 2, 2), expected);
        assert_eq!(unpermute_rows(&[], 2, 2), [0u8; 0]);
    }

    #[test]
    #[should_panic(expected = "expected 2 heads with an even number of rows of 2 bytes, found 12 bytes")]
    fn odd_heads_are_a_bug() {
        unpermute_rows(&[0; 12], 2, 2);
    }
}
