"""GGUF blocks, decoded and packed, against the `gguf` package bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from octavo._native import testing
from support.packed_weights import ISAS

BLOCKS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"]
SUPER_BLOCKS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
# Byte offsets of the fp16 numbers in a block: kept finite, everything else is random.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0],
}  # fmt: skip


def random_rows(name: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """uint8 [rows, row_bytes] with every bit random, but for infinities and NaN."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows * blocks, size)).astype(np.uint8)
    for at in HALVES[name]:
        half = rng.integers(0, 0x7C00, len(data)).astype(np.uint16)
        half |= rng.integers(0, 2, len(data)).astype(np.uint16) << 15
        data[:, at : at + 2] = half.view(np.uint8).reshape(-1, 2)
    return data.reshape(rows, -1)


def inputs(name: str, blocks: int) -> int:
    return blocks * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0]


def reference(name: str, data: np.ndarray) -> np.ndarray:
    return dequantize(data, gguf.GGMLQuantizationType[name]).astype(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, where +0 and -0 count as one: a packed zero scale loses its sign nowhere else."""
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.mark.parametrize("name", BLOCKS + SUPER_BLOCKS)
def test_dequantizes_bit_for_bit(name: str) -> None:
    data = random_rows(name, 40, 24, seed=1)
    k = inputs(name, 24)
    assert testing.gguf_row_bytes(name, k) == data.shape[1]
    assert same_bits(testing.gguf_dequantize(name, data, k), reference(name, data))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", BLOCKS + SUPER_BLOCKS)
def test_packs_and_unpacks_bit_for_bit(isa: str, name: str) -> None:
    rows, blocks = 37, 3
    data = random_rows(name, rows, blocks, seed=2)
    packed = testing.gguf_packed(name, rows, inputs(name, blocks))
    packed.pack_gguf(20, name, np.ascontiguousarray(data[20:]))
    packed.pack_gguf(0, name, np.ascontiguousarray(data[:20]))
    packed.raw()  # checks the sentinels around the panels
    assert same_bits(packed.unpack(isa), reference(name, data))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_widens_floats_bit_for_bit(name: str) -> None:
    """All 65536 patterns of 16 bits; NaN stays NaN."""
    bits = np.arange(65536, dtype=np.uint16).reshape(4, -1)
    if name == "F32":
        want = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
        data = want.view(np.uint8)
    elif name == "F16":
        want, data = bits.view(np.float16).astype(np.float32), bits.view(np.uint8)
    else:
        want = (bits.astype(np.uint32) << 16).view(np.float32)
        data = bits.view(np.uint8)
    got = testing.gguf_dequantize(name, np.ascontiguousarray(data), want.shape[1])
    assert (np.isnan(got) == np.isnan(want)).all()
    assert same_bits(np.nan_to_num(got, nan=0), np.nan_to_num(want, nan=0))


def test_refuses_unknown_types_and_broken_rows() -> None:
    with pytest.raises(ValueError, match="Q9_Z"):
        testing.gguf_packed("Q9_Z", 1, 32)
    with pytest.raises(ValueError, match="Q4_K"):
        testing.gguf_packed("Q4_K", 1, 128)
    assert testing.gguf_row_bytes("Q4_K", 128) == 0
