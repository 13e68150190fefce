"""Writes the golden values of the dequantisation tests with the `gguf` package.

    python scripts/golden_dequantise.py

`crates/kernels/tests/golden/dequantise.safetensors` gets, for every storage type:

    {TYPE}.bytes   uint8   [2, bytes per row of 512 numbers]
    {TYPE}.f32     float32 [2, 512]  what those bytes stand for

Blocks are random bytes, so that every bit pattern of the packed fields occurs; only the float16
scales are drawn as moderate finite numbers of both signs. The float types hold every kind of finite
number: normal, subnormal, both zeros.
"""

from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.numpy import save_file

OUTPUT = Path(__file__).resolve().parent.parent / "crates/kernels/tests/golden/dequantise.safetensors"
ROWS, COLUMNS = 2, 512

# Byte offsets of the float16 fields in a block, from the block structs of ggml-common.h.
SCALE_OFFSETS = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def random_blocks(name, generator):
    """Random bytes [ROWS, bytes per row] with finite scales."""
    block_size, type_size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = generator.integers(0, 256, (ROWS * COLUMNS // block_size, type_size), dtype=np.uint8)
    for offset in SCALE_OFFSETS[name]:
        sign = generator.choice([-1.0, 1.0], len(blocks))
        scale = (sign * generator.uniform(0.01, 2.0, len(blocks))).astype(np.float16)
        blocks[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, -1)


def random_halves(exponent_mask, generator):
    """Random bit patterns [ROWS, 2 * COLUMNS] of a 16-bit float, none of them infinite or NaN."""
    bits = generator.integers(0, 1 << 16, (ROWS, COLUMNS), dtype=np.uint16)
    # An exponent of all ones is infinity or NaN; clearing it gives a subnormal.
    bits[(bits & exponent_mask) == exponent_mask] &= np.uint16(0xFFFF ^ exponent_mask)
    bits[:, :4] = [0x0000, 0x8000, 0x0001, 0x8001]
    return bits.view(np.uint8)


def main():
    generator = np.random.default_rng(0)
    tensors = {}
    for name in [*SCALE_OFFSETS, "F16", "BF16"]:
        if name == "F16":
            data = random_halves(np.uint16(0x7C00), generator)
            values = data.view(np.float16).astype(np.float32)
        elif name == "BF16":
            data = random_halves(np.uint16(0x7F80), generator)
            values = dequantize(data, GGMLQuantizationType.BF16)
        else:
            data = random_blocks(name, generator)
            values = dequantize(data, GGMLQuantizationType[name])
        assert values.shape == (ROWS, COLUMNS) and values.dtype == np.float32, name
        assert np.isfinite(values).all() and len(np.unique(values)) > 50, name
        tensors[f"{name}.bytes"] = np.ascontiguousarray(data)
        tensors[f"{name}.f32"] = np.ascontiguousarray(values)
        print(f"{name}: bytes {data.shape}, values in [{values.min():.4g}, {values.max():.4g}]")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, OUTPUT)
    OUTPUT.chmod(0o644)


if __name__ == "__main__":
    main()
