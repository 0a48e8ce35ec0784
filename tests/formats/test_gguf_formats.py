"""Our formats against the blocks of the `gguf` package: same sizes, values, and, where the
conventions coincide, codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from octavo.formats.gguf_formats import GGUF_FORMATS, gguf_type_of
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rtn import encode
from support.number_formats import normal_weight

F32 = npt.NDArray[np.float32]
BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}


def test_every_type_is_there_and_read_only() -> None:
    assert list(GGUF_FORMATS) == [
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
    ]
    with pytest.raises(TypeError):
        GGUF_FORMATS["F32"] = GGUF_FORMATS["F16"]  # type: ignore[index]


@pytest.mark.parametrize("name", sorted(GGUF_FORMATS))
def test_a_format_takes_the_bits_of_its_blocks(name: str) -> None:
    constants = pytest.importorskip("gguf.constants")
    values, size = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType[name]]
    assert GGUF_FORMATS[name].bits_per_value((8, 4096)) == size * 8 / values


def test_names_go_both_ways() -> None:
    assert all(gguf_type_of(format) == name for name, format in GGUF_FORMATS.items())
    assert gguf_type_of(NumberFormat.parse("int4_g64")) is None


def _their_blocks(weight: F32, name: str) -> npt.NDArray[np.uint8]:
    gguf: Any = pytest.importorskip("gguf")
    return np.asarray(gguf.quants.quantize(weight, gguf.GGMLQuantizationType[name]))


def _their_values(blocks: npt.NDArray[np.uint8], name: str) -> F32:
    gguf: Any = pytest.importorskip("gguf")
    return np.asarray(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]))


def _read(blocks: npt.NDArray[np.uint8], name: str, width: int) -> QuantizedTensor:
    """Blocks of 32 as our codes: [d | m? | high bits? | low nibbles, or bytes]."""
    format, bits = GGUF_FORMATS[name], BITS[name]
    raw = blocks.reshape(blocks.shape[0], width // 32, -1)
    halves = 2 if format.zero == "real" else 1
    params = np.ascontiguousarray(raw[..., : 2 * halves]).view(np.float16)
    body = raw[..., 2 * halves :]
    if bits == 8:
        codes = body ^ 0x80
    else:
        low = body[..., -16:]
        codes = np.concatenate([low & 15, low >> 4], axis=-1)
    if bits == 5:
        codes = codes | np.unpackbits(body[..., :4], axis=-1, bitorder="little") << 4
    return QuantizedTensor(
        format,
        (blocks.shape[0], width),
        pack_bits(codes.reshape(blocks.shape[0], width), bits),
        params[..., 0],
        params[..., 1] if halves == 2 else None,
    )


@pytest.mark.parametrize("name", sorted(BITS))
def test_their_blocks_mean_the_same_to_us(name: str) -> None:
    blocks = _their_blocks(normal_weight((16, 256), seed=1), name)
    np.testing.assert_array_equal(
        _read(blocks, name, 256).dequantize(), _their_values(blocks, name)
    )


@pytest.mark.parametrize("name", sorted(BITS))
def test_scales_agree_and_codes_are_never_worse(name: str) -> None:
    """ggml divides by the unrounded scale and breaks ties upwards; we divide by the scale as
    stored. So scales and offsets are equal, codes differ by one at times, and ours are nearer."""
    weight = normal_weight((64, 512), seed=2)
    theirs, ours = _read(_their_blocks(weight, name), name, 512), encode(weight, GGUF_FORMATS[name])
    np.testing.assert_array_equal(ours.steps(), theirs.steps())
    if theirs.zeros is not None:
        np.testing.assert_array_equal(ours.zeros, theirs.zeros)
    apart = ours.unpacked_codes().astype(int) - theirs.unpacked_codes()
    assert np.abs(apart).max() <= 1
    # a code differs where w / s lies within its fp16 rounding (2^-11) of a tie: +- code * 2^-11
    assert np.mean(apart != 0) < 2 * 2.0 ** (BITS[name] - 11)
    error = [np.square(t.dequantize() - weight) for t in (ours, theirs)]
    assert (error[0] <= error[1] * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize(("name", "peak"), [("Q4_0", -8), ("Q5_0", -16), ("Q8_0", 127)])
def test_codes_agree_where_the_scale_is_exact_and_nothing_ties(name: str, peak: int) -> None:
    rng = np.random.default_rng(3)
    steps = 2.0 ** rng.integers(-12, 2, (8, 16, 1))
    units = rng.integers(-abs(peak) + 1, abs(peak) - 1, (8, 16, 32)) + rng.uniform(-0.45, 0.45)
    units[..., 5] = peak
    weight = (units * steps).reshape(8, 512).astype(np.float32)
    theirs, ours = _read(_their_blocks(weight, name), name, 512), encode(weight, GGUF_FORMATS[name])
    np.testing.assert_array_equal(ours.unpacked_codes(), theirs.unpacked_codes())
