"""Writes a GGUF file of a Llama of any size with random weights, to measure time and memory of models that are not at hand.

usage: random_model.py TOKENIZER_FROM.gguf OUT.gguf SIZE, SIZE one of 1b (Llama 3.2's shape) and 8b (Llama 3.1's), both with
the vocabulary of the file that the tokenizer is taken from. Weights are Q4_0, about 0.6 bytes each.
"""
import sys

import gguf
import numpy as np

# hidden_size, intermediate_size, layers, heads, key/value heads
SHAPES = {"1b": (2048, 8192, 16, 32, 8), "8b": (4096, 14336, 32, 32, 8)}
BLOCK, BYTES = 32, 18


def quantised(rng, rows, cols):
    """Blocks of a scale and random nibbles, whose numbers are about as large as a trained model's."""
    blocks = rng.integers(0, 256, (rows, cols // BLOCK, BYTES), dtype=np.uint8)
    scale = np.full((rows, cols // BLOCK, 1), 1.5 / 8 / np.sqrt(cols), dtype=np.float16)
    blocks[..., :2] = scale.view(np.uint8)
    return blocks.reshape(rows, -1)


def main(source, out, size):
    d, f, layers, heads, kv_heads = SHAPES[size]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("tokenizer."):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[-1])
        else:
            writer.add_key_value(name, field.contents(), field.types[0])
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer.add_context_length(8192)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(f)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(d // heads)
    writer.add_vocab_size(vocabulary)
    rng = np.random.default_rng(0)
    matrix = lambda name, rows, cols: writer.add_tensor(
        f"{name}.weight", quantised(rng, rows, cols), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    norm = lambda name: writer.add_tensor(f"{name}.weight", np.ones(d, dtype=np.float32))
    kv = kv_heads * d // heads
    matrix("token_embd", vocabulary, d)
    norm("output_norm")
    for i in range(layers):
        block = f"blk.{i}."
        for name, rows, cols in [("attn_q", d, d), ("attn_k", kv, d), ("attn_v", kv, d), ("attn_output", d, d),
                                 ("ffn_gate", f, d), ("ffn_up", f, d), ("ffn_down", d, f)]:
            matrix(block + name, rows, cols)
        norm(block + "attn_norm")
        norm(block + "ffn_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:4])
