"""GGUF encoders: bytes that everyone decodes alike, with no more error than llama.cpp's own."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from octavo.core.errors import FormatError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.gguf_blocks import dequantize, quantized
from octavo.io.gguf_fields import exact_blocks, exact_type
from octavo.io.gguf_search import SHAPES, search
from octavo.io.stored import BLOCK_TYPES

F32 = npt.NDArray[np.float32]
TYPES = list(SHAPES)


def ggml() -> ctypes.CDLL:
    llama_cpp = pytest.importorskip("llama_cpp")
    library = Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"
    if not library.exists():
        pytest.skip("llama_cpp brings no libggml-base.so")
    loaded = ctypes.CDLL(str(library))
    floats = ctypes.POINTER(ctypes.c_float)
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, floats, ctypes.c_void_p, *[ctypes.c_int64] * 3, floats
    ]  # fmt: skip
    return loaded


def by_ggml(type_name: str, weight: F32, importance: F32 | None) -> npt.NDArray[np.uint8]:
    block, (rows, width) = BLOCK_TYPES[type_name], weight.shape
    out = np.zeros((rows, width // block.elements * block.size), np.uint8)
    floats = ctypes.POINTER(ctypes.c_float)
    given = None if importance is None else importance.ctypes.data_as(floats)
    ggml().ggml_quantize_chunk(
        block.id, weight.ctypes.data_as(floats), out.ctypes.data, 0, rows, width, given
    )
    return out


def error(type_name: str, data: npt.NDArray[np.uint8], weight: F32, weigh: Any = 1) -> float:
    wrong = dequantize(type_name, data).astype(np.float64) - weight
    return float((weigh * wrong**2).sum())


def weights(kind: str) -> F32:
    rng = np.random.default_rng(4)
    w = rng.standard_normal((32, 512)).astype(np.float32) * 0.02
    match kind:
        case "outliers":
            w[rng.random(w.shape) < 0.01] *= 20
        case "one-sided":
            w = np.abs(w) + np.float32(0.1)
        case "heavy":
            w = (rng.standard_t(3, w.shape) * 0.01).astype(np.float32)
        case "holes":
            w[:, ::2] = 0
            w[:8] = 0
            w[8:16] = 0.5
    return w


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("kind", ["normal", "outliers", "one-sided", "heavy", "holes"])
def test_no_more_error_than_ggml(type_name: str, kind: str) -> None:
    w = weights(kind)
    theirs = error(type_name, by_ggml(type_name, w, None), w)
    assert error(type_name, search(type_name, w), w) <= theirs


@pytest.mark.parametrize("type_name", TYPES)
def test_no_more_weighted_error_than_ggml(type_name: str) -> None:
    w = weights("normal")
    weigh = np.random.default_rng(1).standard_normal(512).astype(np.float32) ** 2
    theirs = error(type_name, by_ggml(type_name, w, weigh), w, weigh)
    assert error(type_name, search(type_name, w, weigh), w, weigh) < theirs


@pytest.mark.parametrize("type_name", TYPES)
def test_importance_moves_the_error(type_name: str) -> None:
    w = weights("normal")
    weigh = np.where(np.arange(512) % 2 == 0, np.float32(1), np.float32(0.01))
    plain, weighed = search(type_name, w), search(type_name, w, weigh)
    assert error(type_name, weighed, w, weigh) < error(type_name, plain, w, weigh)


@pytest.mark.parametrize("type_name", TYPES)
def test_everyone_decodes_the_bytes_alike(type_name: str) -> None:
    data = search(type_name, weights("heavy"))
    theirs = gguf.dequantize(data, gguf.GGMLQuantizationType[type_name])
    np.testing.assert_array_equal(dequantize(type_name, data), theirs)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q5_0", "Q8_0", "IQ4_NL"])
def test_what_lies_on_the_grid_stays(type_name: str) -> None:
    once = dequantize(type_name, search(type_name, weights("normal")))
    # A scale found by least squares is off by some units of 2^-24 before fp16 swallows them.
    np.testing.assert_array_equal(dequantize(type_name, search(type_name, once)), once)


@pytest.mark.parametrize("type_name", TYPES)
def test_blocks_of_any_bytes_come_back(type_name: str) -> None:
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, (4, 4 * BLOCK_TYPES[type_name].size)).astype(np.uint8)
    tensor = quantized(type_name, data)
    np.testing.assert_array_equal(exact_blocks(tensor, type_name), data)


EXACT = [
    ("int4_g32", "Q4_0"), ("int4_g64", "Q4_0"), ("int4_channel", "Q4_0"), ("int3_g32", "Q4_0"),
    ("int2_tensor", "Q4_0"), ("int4_g32_asym", "Q5_0"), ("int3_g32_asym", "Q4_0"),
    ("int5_g32", "Q5_0"), ("int8_g64", "Q8_0"), ("int6_g32", "Q8_0"), ("int5_g32_asym", "Q8_0"),
    ("ternary_tensor", "Q4_0"), ("binary_channel", "Q4_0"), ("int4_g32_offset", "Q4_1"),
    ("int5_g32_offset", "Q5_1"), ("iq4nl_g32", "IQ4_NL"), ("int6_g16_si8x256", "Q6_K"),
    ("int4_g32_offset_su6x256", "Q4_K"), ("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32"),
    ("nf4_g32", None), ("int4_g16", None), ("int8_g32_asym", None), ("int4_g32_sfp32", None),
    ("fp8_e4m3_channel", None), ("lut4_channel", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), EXACT)
def test_a_format_goes_into_a_type_exactly_or_not_at_all(name: str, expected: str | None) -> None:
    format = NumberFormat.parse(name)
    tensor = rtn_or_random(format)
    assert exact_type(tensor) == expected
    if expected is not None:
        data = exact_blocks(tensor, expected)
        np.testing.assert_array_equal(dequantize(expected, data), tensor.dequantize())


def rtn_or_random(format: NumberFormat) -> QuantizedTensor:
    if format.variant == "learned":
        codes = np.zeros((32, 256), np.uint8)
        levels = np.arange(16, dtype=np.float32)
        return QuantizedTensor(format, (32, 512), codes, np.ones((32, 1), np.float16), None, None,
                               None, levels)  # fmt: skip
    return rtn.encode(weights("normal"), format)


def test_scales_of_another_type_that_are_halves_fit() -> None:
    tensor = rtn.encode(weights("normal"), NumberFormat.parse("int4_g32"))
    assert tensor.scales is not None
    wide = QuantizedTensor(NumberFormat.parse("int4_g32_sfp32"), tensor.shape, tensor.codes,
                           tensor.scales.astype(np.float32))  # fmt: skip
    assert exact_type(wide) == "Q4_0"
    np.testing.assert_array_equal(exact_blocks(wide, "Q4_0"), exact_blocks(tensor, "Q4_0"))


@pytest.mark.parametrize(
    ("type_name", "change", "words"),
    [
        ("Q4_K", lambda w: w[:, :128], "multiple of 256"),
        ("Q4_0", lambda w: w * np.float32(np.nan), "not a number"),
        ("Q4_0", lambda w: w * np.float32(1e30), "float16"),
        ("F16", lambda w: w, "F16 can't be encoded"),
    ],
)
def test_what_cannot_be_encoded_says_why(type_name: str, change: Any, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        search(type_name, change(weights("normal")))


@pytest.mark.parametrize("bad", [np.ones(3), np.full(512, -1.0), np.full(512, np.nan)])
def test_importance_is_checked(bad: F32) -> None:
    with pytest.raises(FormatError, match="importance"):
        search("Q4_0", weights("normal"), bad.astype(np.float32))
