"""Blocks against the `gguf` package, bit for bit, in both directions."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as oracle_dequantize
from gguf.quants import quantize as oracle_quantize

from octavo.core.errors import FormatError, UnsupportedError
from octavo.io.gguf_blocks import dequantize, encode, format_of, quantized
from octavo.io.stored import BLOCK_TYPES

DECODED = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "IQ4_NL", "IQ4_XS",
]  # fmt: skip
ENCODED = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
# Bytes of fp16 fields within a block (two each), to be made finite or extreme.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
EXTREME = np.array(
    [0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504, -65504, 1.0, np.inf, -np.inf, np.nan], np.float16
)


def random_rows(type_name: str, rows: int, row_blocks: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    block = BLOCK_TYPES[type_name]
    n = row_blocks if block.elements > 1 else row_blocks * 32
    return rng.integers(0, 256, (rows, n * block.size), np.uint8)


def oracle(type_name: str, data: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(oracle_dequantize(data, GGMLQuantizationType[type_name]))


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal bit for bit; which bits a NaN carries is the processor's choice."""
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    both = np.isnan(ours) & np.isnan(theirs)
    np.testing.assert_array_equal(
        np.where(both, 0, ours.view(np.uint32)), np.where(both, 0, theirs.view(np.uint32))
    )


@pytest.mark.parametrize("type_name", DECODED)
def test_dequantize_equals_the_oracle_on_random_bytes(type_name: str) -> None:
    data = random_rows(type_name, 64, 4, seed=1)
    same(dequantize(type_name, data), oracle(type_name, data))


@pytest.mark.parametrize("type_name", sorted(HALVES))
def test_dequantize_equals_the_oracle_at_extreme_scales(type_name: str) -> None:
    data = random_rows(type_name, len(EXTREME) ** 2, 1, seed=2)
    grid = np.stack(np.meshgrid(EXTREME, EXTREME), -1).reshape(-1, 2)
    for column, offset in enumerate(HALVES[type_name]):
        data[:, offset : offset + 2] = grid[:, column : column + 1].copy().view(np.uint8)
    same(dequantize(type_name, data), oracle(type_name, data))


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_every_16_bit_float_widens_as_the_oracle_does(type_name: str) -> None:
    data = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256).view(np.uint8)
    same(dequantize(type_name, data), oracle(type_name, data))


@pytest.mark.parametrize("type_name", sorted(HALVES))
def test_every_value_of_every_byte_is_decoded(type_name: str) -> None:
    """One byte of a block takes all values, the rest is fixed: exhaustive over bit positions."""
    size = BLOCK_TYPES[type_name].size
    base = random_rows(type_name, 1, 1, seed=3)
    for offset in HALVES[type_name]:
        base[:, offset : offset + 2] = np.array([0.125], np.float16).view(np.uint8)
    data = np.repeat(base, 256 * size, axis=0)
    for byte in range(size):
        data[256 * byte : 256 * (byte + 1), byte] = np.arange(256)
    same(dequantize(type_name, data), oracle(type_name, data))


@pytest.mark.parametrize("type_name", DECODED)
def test_canonical_codes_hold_the_same_values(type_name: str) -> None:
    data = random_rows(type_name, 16, 3, seed=4)
    tensor = quantized(type_name, data)
    assert tensor.format == format_of(type_name)
    with np.errstate(all="ignore"):
        same(tensor.dequantize(), oracle(type_name, data))


@pytest.mark.parametrize("type_name", ENCODED)
@pytest.mark.parametrize("scale", [1e-6, 0.02, 1.0, 300.0])
def test_encode_equals_the_oracle(type_name: str, scale: float) -> None:
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal((32, 256)) * scale).astype(np.float32)
    weight[0] = 0
    weight[1, :32] = np.arange(32)  # ties of rounding, an exact grid
    weight[2] = -weight[2] * (rng.random(256) < 0.1)
    weight[3] = scale  # constant: no range
    theirs = oracle_quantize(weight, GGMLQuantizationType[type_name])
    np.testing.assert_array_equal(encode(type_name, weight), theirs.view(np.uint8))


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_encoded_weights_are_near_the_weights(type_name: str) -> None:
    weight = np.random.default_rng(6).standard_normal((8, 64)).astype(np.float32)
    back = dequantize(type_name, encode(type_name, weight))
    levels = {"4": 15, "5": 31, "8": 254}[type_name[1]]
    groups = weight.reshape(8, 2, 32)
    # A grid over twice the largest magnitude; the signed types lack its last positive level, so
    # that one weight may be a whole step off; fp16 rounding of scale and offset adds 2^-10 of it.
    span = 2 * np.abs(groups).max(-1)
    error = np.abs(back - weight).reshape(8, 2, 32).max(-1)
    assert (error <= span * (1.07 / levels + 2.0**-10)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_encode_refuses_what_a_grid_cannot_hold(bad: float) -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, 7] = bad
    with pytest.raises(FormatError, match="not a number"):
        encode("Q8_0", weight)


@pytest.mark.parametrize(("type_name", "value"), [("F16", 7e4), ("Q4_0", 1e6), ("Q4_1", -7e4)])
def test_encode_refuses_what_overflows_fp16(type_name: str, value: float) -> None:
    with pytest.raises(FormatError, match="beyond the range of float16"):
        encode(type_name, np.full((1, 32), value, np.float32))


def test_encode_refuses_other_types_and_broken_rows() -> None:
    with pytest.raises(FormatError, match="only copied"):
        encode("Q4_K", np.zeros((1, 256), np.float32))
    with pytest.raises(FormatError, match="multiple of 32"):
        encode("Q4_0", np.zeros((1, 33), np.float32))


def test_decode_refuses_unknown_types_and_broken_rows() -> None:
    with pytest.raises(UnsupportedError, match="IQ1_S"):
        dequantize("IQ1_S", np.zeros((1, 50), np.uint8))
    with pytest.raises(FormatError, match="whole blocks"):
        dequantize("Q4_0", np.zeros((1, 17), np.uint8))
