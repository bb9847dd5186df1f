#!/usr/bin/env python3
"""Makes the golden blocks beside this file from ggml's reference code: see README.md."""

import ctypes
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
FLOATS = ctypes.POINTER(ctypes.c_float)

# Name, values per block, bytes per block, places of halves in a block, ggml's encoder, ggml's decoder.
FORMATS = [
    ("F16", 1, 2, [], "ggml_fp32_to_fp16_row", "ggml_fp16_to_fp32_row"),
    ("BF16", 1, 2, [], "ggml_fp32_to_bf16_row_ref", "ggml_bf16_to_fp32_row"),
    ("Q4_0", 32, 18, [0], "quantize_row_q4_0_ref", "dequantize_row_q4_0"),
    ("Q4_1", 32, 20, [0, 2], "quantize_row_q4_1_ref", "dequantize_row_q4_1"),
    ("Q8_0", 32, 34, [0], "quantize_row_q8_0_ref", "dequantize_row_q8_0"),
    ("Q5_0", 32, 22, [0], "quantize_row_q5_0_ref", "dequantize_row_q5_0"),
    ("Q5_1", 32, 24, [0, 2], "quantize_row_q5_1_ref", "dequantize_row_q5_1"),
    ("Q2_K", 256, 84, [80, 82], "quantize_row_q2_K_ref", "dequantize_row_q2_K"),
    ("Q3_K", 256, 110, [108], "quantize_row_q3_K_ref", "dequantize_row_q3_K"),
    ("Q4_K", 256, 144, [0, 2], "quantize_row_q4_K_ref", "dequantize_row_q4_K"),
    ("Q5_K", 256, 176, [0, 2], "quantize_row_q5_K_ref", "dequantize_row_q5_K"),
    ("Q6_K", 256, 210, [208], "quantize_row_q6_K_ref", "dequantize_row_q6_K"),
    ("IQ4_NL", 32, 18, [0], "quantize_iq4_nl", "dequantize_row_iq4_nl"),
    ("IQ4_XS", 256, 136, [0], "quantize_iq4_xs", "dequantize_row_iq4_xs"),
    ("IQ3_XXS", 256, 98, [0], "quantize_iq3_xxs", "dequantize_row_iq3_xxs"),
    ("IQ3_S", 256, 110, [0], "quantize_iq3_s", "dequantize_row_iq3_s"),
    ("IQ2_XXS", 256, 66, [0], "quantize_iq2_xxs", "dequantize_row_iq2_xxs"),
    ("IQ2_XS", 256, 74, [0], "quantize_iq2_xs", "dequantize_row_iq2_xs"),
    ("IQ2_S", 256, 82, [0], "quantize_iq2_s", "dequantize_row_iq2_s"),
    ("IQ1_S", 256, 50, [0], "quantize_iq1_s", "dequantize_row_iq1_s"),
    ("IQ1_M", 256, 56, [], "quantize_iq1_m", "dequantize_row_iq1_m"),
    ("TQ1_0", 256, 54, [52], "quantize_row_tq1_0_ref", "dequantize_row_tq1_0"),
    ("TQ2_0", 256, 66, [64], "quantize_row_tq2_0_ref", "dequantize_row_tq2_0"),
    ("MXFP4", 32, 17, [], "quantize_row_mxfp4_ref", "dequantize_row_mxfp4"),
    ("NVFP4", 64, 36, [], "quantize_row_nvfp4_ref", "dequantize_row_nvfp4"),
    ("Q1_0", 128, 18, [0], "quantize_row_q1_0_ref", "dequantize_row_q1_0"),
    ("Q2_0", 64, 18, [0], "quantize_row_q2_0_ref", "dequantize_row_q2_0"),
]

# ggml's ids of the formats whose encoder has tables to make first.
TABLES = {"IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ3_S": 21, "IQ2_S": 22, "IQ1_M": 29}

# Those that ggml only encodes with an importance of each value: all the same.
WEIGHTED = ["IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"]

FIRST = ["F16", "BF16", "Q4_0", "Q4_1", "Q8_0"]

# Halves that decoders get wrong: zeros, the least and greatest denormals, ones, the greatest, infinities, NaN.
HALVES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00]


def fused(random):
    """Blocks for which a fused multiply-add, which the reference does not use, would choose another code."""
    found = []
    while len(found) < 8:
        x = random.normal(size=(20000, 32)).astype(np.float32)
        low = x.min(axis=1, keepdims=True)
        extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
        for a, d, half in ((x - low, (x.max(axis=1, keepdims=True) - low) / np.float32(15), 0.5), (x, extreme / np.float32(-8), 8.5)):
            inverse = np.float32(1) / d
            apart = (a * inverse + np.float32(half)).astype(np.uint8)
            # Exact but for the last rounding, as the product has 48 bits.
            once = (a.astype(np.float64) * inverse + half).astype(np.float32).astype(np.uint8)
            found.extend(x[(apart != once).any(axis=1)][:2])
    return found


def inputs(random):
    """Blocks of 32 values that a quantizer meets, and those at its edges."""
    normal = [random.normal(size=32) * 10.0 ** random.integers(-4, 5) for _ in range(40)]
    position = np.arange(32)
    edges = [
        np.zeros(32),
        -np.zeros(32),
        np.full(32, 0.37),
        np.full(32, -2.5),
        -np.abs(random.normal(size=32)),
        np.abs(random.normal(size=32)),
        np.where(position == 17, 1e4, random.normal(size=32)),
        np.where(position == 3, -6e4, random.normal(size=32)),
        np.where(position % 2 == 0, 1.0, -1.0),  # equal magnitudes: the first counts
        np.where(position % 2 == 0, -1.0, 1.0),
        position.astype(float),  # ties of rounding
        position - 15.5,
        (position - 16) / 2.0,
        (position - 16) * 127 / 32.0,
        random.normal(size=32) * 1e-6,  # scales that are denormal as halves
        random.normal(size=32) * 3e-7,
        random.normal(size=32) * 1e-9,  # scales that are zero as halves
        random.normal(size=32) * 4e5,  # scales near the greatest half
        random.normal(size=32) * 1e8,  # scales that are infinite as halves
        np.where(position < 31, 0.0, 1e-3),
    ]
    # Zeros of both signs as the least or the greatest: the first counts.
    zeros = [np.where(position % 3 == 2, x, np.where(position % 3 == first, -0.0, 0.0)) for first in (0, 1) for x in (1.5, -1.5)]
    return np.array(normal + edges + fused(random) + zeros, dtype=np.float32)


def large_inputs(random):
    """Blocks of 256 values: normals of one size, of many, heavy tails, few of many, and the edges of `inputs` side by side."""
    small = inputs(random)
    small = small[np.abs(small).max(axis=1) < 1e4]
    # A scale of scales: some groups much larger than others.
    sizes = 10.0 ** random.uniform(-3, 1, size=(16, 8, 1))
    blocks = [
        random.normal(size=(16, 256)) * 10.0 ** random.integers(-4, 4, size=(16, 1)),
        (random.normal(size=(16, 8, 32)) * sizes).reshape(16, 256),
        random.standard_t(2, size=(8, 256)),
        np.where(random.uniform(size=(4, 256)) < 0.05, random.normal(size=(4, 256)), 0.0),
        np.abs(random.normal(size=(4, 256))),
        -np.abs(random.normal(size=(4, 256))),
        random.normal(size=(4, 256)) + 3.0,
        small[random.integers(0, len(small), size=8 * 24)].reshape(24, 256),
        np.zeros((1, 256)),
        np.full((1, 256), 0.37),
        np.full((1, 256), -2.5),
        np.arange(256.0)[None] - 100,
        random.normal(size=(2, 256)) * 1e-9,
    ]
    return np.concatenate(blocks).astype(np.float32)


def some_inputs(length):
    """Blocks of more values than 32: those of `inputs` side by side."""

    def blocks(random):
        small = inputs(random)
        return small[random.integers(0, len(small), size=60 * length // 32)].reshape(60, length)

    return blocks


def encode_rows(ggml, name, encode, values, blocks):
    """Encodes with either kind of function: of a row, or of rows with importances."""
    source, to = values.ctypes.data_as(FLOATS), blocks.ctypes.data_as(ctypes.c_void_p)
    if encode.endswith("_ref") or encode.endswith("_row"):
        getattr(ggml, encode)(source, to, ctypes.c_int64(values.size))
        return
    if name in TABLES:
        ggml.ggml_quantize_init(TABLES[name])
    weights = np.ones(values.size, np.float32).ctypes.data_as(FLOATS) if name in WEIGHTED else None
    getattr(ggml, encode)(source, to, ctypes.c_int64(1), ctypes.c_int64(values.size), weights)


def singles(random):
    """Singles that the float formats round: ties, denormals, overflow, every exponent, NaN."""
    bits = random.integers(0, 1 << 32, size=600, dtype=np.uint64).astype(np.uint32)
    ties = (random.integers(0, 1 << 16, size=200, dtype=np.uint64) << 16 | 0x8000).astype(np.uint32)
    half = random.normal(size=200).astype(np.float32)
    tiny = (random.normal(size=200) * 1e-6).astype(np.float32)
    # Half-way between two halves, by the 13 bits that a half does not have.
    between = half.view(np.uint32) & 0xFFFFE000 | 0x1000
    edges = np.array([0.0, -0.0, 65504.0, 65519.0, 65520.0, 1e6, 5.9e-8, 2.9e-8, 3e-8, 1e-45, 3.4e38, np.inf, -np.inf], np.float32)
    values = np.concatenate([bits, ties, half.view(np.uint32), tiny.view(np.uint32), between, edges.view(np.uint32)])
    return values.view(np.float32)


def main(library):
    ggml = ctypes.CDLL(library)
    first = np.random.default_rng(20240917)
    for name, length, size, halves, encode, decode in FORMATS:
        # The first formats share a stream, so that each one later leaves the files of the others as they are.
        random = first if name in FIRST else np.random.default_rng(list(name.encode()))
        values = {1: singles, 32: inputs, 256: large_inputs}.get(length, some_inputs(length))(random).ravel()
        count = values.size // length
        blocks = np.zeros(count * size, np.uint8)
        encode_rows(ggml, name, encode, values, blocks)

        raw = random.integers(0, 256, size=(2000 if length == 1 else 40) * size, dtype=np.uint8)
        for place in halves:
            for block, half in enumerate(HALVES):
                at = (block * (1 + place)) % 40 * size + place
                raw[at : at + 2] = half & 255, half >> 8

        def decoded(blocks):
            out = np.zeros(blocks.size // size * length, np.float32)
            getattr(ggml, decode)(blocks.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(FLOATS), ctypes.c_int64(out.size))
            return out

        with open(HERE / f"{name}.bin", "wb") as out:
            out.write(np.array([count, raw.size // size], "<u4").tobytes())
            for part in (values, blocks, decoded(blocks), raw, decoded(raw)):
                out.write(part.tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
