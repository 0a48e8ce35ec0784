"""GGUF blocks: decoded to canonical codes or to fp32, exactly; and encoded for the simple types.

A block is a run of weights along the inputs with its own scales. `_fields` states the one bit
layout that all of them share: a run of bytes holds its low fields first, then the next ones.
Byte layouts follow ggml's `block_*` structures; values equal the `gguf` package's bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError, UnsupportedError
from octavo.formats.codebooks import iq4nl_levels
from octavo.formats.gguf_formats import GGUF_FORMATS
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.io.mapping import U8
from octavo.io.stored import BLOCK_TYPES

F32 = npt.NDArray[np.float32]

_FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_ELEMENTS_AT_ONCE = 1 << 20  # of a dequantization: temporaries stay in the cache


class _Blocks(NamedTuple):
    """The fields of n blocks, in the terms of QuantizedTensor."""

    codes: U8  # [n, elements], unsigned
    scales: npt.NDArray[np.generic]  # [n, groups]: fp16, or integers under `supers`
    zeros: npt.NDArray[np.generic] | None = None  # [n, groups], offsets of the same kind
    supers: npt.NDArray[np.generic] | None = None  # fp16 [n, 1]
    super_zeros: npt.NDArray[np.generic] | None = None  # fp16 [n, 1]


def format_of(type_name: str) -> NumberFormat:
    """The NumberFormat of a tensor type. Raises UnsupportedError for one we don't decode."""
    if type_name not in GGUF_FORMATS:
        raise UnsupportedError(
            f"tensors of type {type_name} can't be decoded; decoded are {', '.join(GGUF_FORMATS)}. "
            "Get the model in one of these."
        )
    return GGUF_FORMATS[type_name]


def quantized(type_name: str, data: U8) -> QuantizedTensor:
    """uint8 [rows, row_bytes] as stored -> canonical codes; every value is kept."""
    number_format = format_of(type_name)
    rows = data.shape[0]
    if type_name in _FLOATS:
        values = np.ascontiguousarray(data).view(_FLOATS[type_name])
        return QuantizedTensor(number_format, (rows, values.shape[1]), values)
    blocks = _decode(type_name, data)
    codes = blocks.codes.reshape(rows, -1)
    return QuantizedTensor(
        format=number_format,
        shape=(rows, codes.shape[1]),
        codes=pack_bits(codes, number_format.bits),
        scales=blocks.scales.reshape(rows, -1),
        zeros=_rows(blocks.zeros, rows),
        super_scales=_rows(blocks.supers, rows),
        super_zeros=_rows(blocks.super_zeros, rows),
        codebook=_levels(number_format),
    )


def dequantize(type_name: str, data: U8) -> F32:
    """uint8 [rows, row_bytes] as stored -> float32 [rows, k]."""
    number_format = format_of(type_name)
    if type_name in _FLOATS:
        return np.ascontiguousarray(data).view(_FLOATS[type_name]).astype(np.float32)
    rows = data.shape[0]
    block = BLOCK_TYPES[type_name]
    k = data.shape[1] // block.size * block.elements
    out = np.empty((rows, k), np.float32)
    step = max(1, _ELEMENTS_AT_ONCE // max(1, k))
    for start in range(0, rows, step):
        values = _values(number_format, _decode(type_name, data[start : start + step]))
        out[start : start + step] = values.reshape(-1, k)
    return out


def _rows(parameters: npt.NDArray[np.generic] | None, rows: int) -> npt.NDArray[np.generic] | None:
    return None if parameters is None else parameters.reshape(rows, -1)


def _decode(type_name: str, data: U8) -> _Blocks:
    block = BLOCK_TYPES[type_name]
    if data.shape[1] % block.size:
        raise FormatError(f"{type_name} rows of {data.shape[1]} bytes aren't whole blocks")
    return _DECODERS[type_name](np.ascontiguousarray(data).reshape(-1, block.size))


def _values(number_format: NumberFormat, blocks: _Blocks) -> F32:
    """w = fl(fl(s * v) + m), float32 [n, elements]; non-finite scales of bad files pass through."""
    levels = _levels(number_format)
    if levels is not None:
        v = levels[blocks.codes]
    else:
        zero = 0 if number_format.zero == "real" else 1 << (number_format.bits - 1)
        v = blocks.codes.astype(np.float32) - np.float32(zero)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = _widen(blocks.scales, blocks.supers)
        w = v.reshape(*scales.shape, -1) * scales[..., None]
        if blocks.zeros is not None:
            sign = -1 if blocks.super_zeros is not None else 1
            w += np.float32(sign) * _widen(blocks.zeros, blocks.super_zeros)[..., None]
    values: F32 = w.reshape(v.shape)
    return values


def _widen(scales: npt.NDArray[np.generic], supers: npt.NDArray[np.generic] | None) -> F32:
    wide = scales.astype(np.float32)
    return wide if supers is None else supers.astype(np.float32) * wide


def _levels(number_format: NumberFormat) -> F32 | None:
    return iq4nl_levels() if number_format.kind == "codebook" else None


def _fields(data: U8, run: int, bits: int) -> U8:
    """uint8 [n, bytes] -> [n, bytes * 8 / bits]: of each run of bytes the low fields, then on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    spread = data.reshape(len(data), -1, 1, run) >> shifts
    fields: U8 = (spread & np.uint8((1 << bits) - 1)).reshape(len(data), -1)
    return fields


def _lift(bits: U8, by: int) -> U8:
    lifted: U8 = bits << np.uint8(by)
    return lifted


def _half(data: U8) -> npt.NDArray[np.generic]:
    """uint8 [n, 2] -> fp16 [n, 1]."""
    return np.ascontiguousarray(data).view("<f2")


def _high_bits(data: U8) -> U8:
    """uint8 [n, 4], a little-endian word -> its bits [n, 32]."""
    return np.unpackbits(data, axis=1, bitorder="little")


def _q4_0(b: U8) -> _Blocks:
    return _Blocks(_fields(b[:, 2:], 16, 4), _half(b[:, :2]))


def _q4_1(b: U8) -> _Blocks:
    return _Blocks(_fields(b[:, 4:], 16, 4), _half(b[:, :2]), _half(b[:, 2:4]))


def _q5_0(b: U8) -> _Blocks:
    codes = _fields(b[:, 6:], 16, 4) | _lift(_high_bits(b[:, 2:6]), 4)
    return _Blocks(codes, _half(b[:, :2]))


def _q5_1(b: U8) -> _Blocks:
    codes = _fields(b[:, 8:], 16, 4) | _lift(_high_bits(b[:, 4:8]), 4)
    return _Blocks(codes, _half(b[:, :2]), _half(b[:, 2:4]))


def _q8_0(b: U8) -> _Blocks:
    return _Blocks(b[:, 2:] ^ np.uint8(128), _half(b[:, :2]))


def _q2_k(b: U8) -> _Blocks:
    codes = _fields(b[:, 16:80], 32, 2)
    return _Blocks(codes, b[:, :16] & 15, b[:, :16] >> 4, _half(b[:, 80:82]), _half(b[:, 82:84]))


def _q3_k(b: U8) -> _Blocks:
    codes = _fields(b[:, 32:96], 32, 2) | _lift(_fields(b[:, :32], 32, 1), 2)
    scales = _fields(b[:, 96:104], 8, 4) | _lift(_fields(b[:, 104:108], 4, 2), 4)
    return _Blocks(codes, _signed(scales, 32), supers=_half(b[:, 108:110]))


def _q4_k(b: U8) -> _Blocks:
    scales, mins = _scales_and_mins(b[:, 4:16])
    codes = _fields(b[:, 16:], 32, 4)
    return _Blocks(codes, scales, mins, _half(b[:, :2]), _half(b[:, 2:4]))


def _q5_k(b: U8) -> _Blocks:
    scales, mins = _scales_and_mins(b[:, 4:16])
    codes = _fields(b[:, 48:], 32, 4) | _lift(_fields(b[:, 16:48], 32, 1), 4)
    return _Blocks(codes, scales, mins, _half(b[:, :2]), _half(b[:, 2:4]))


def _q6_k(b: U8) -> _Blocks:
    codes = _fields(b[:, :128], 64, 4) | _lift(_fields(b[:, 128:192], 32, 2), 4)
    return _Blocks(codes, b[:, 192:208].view(np.int8), supers=_half(b[:, 208:210]))


def _iq4_nl(b: U8) -> _Blocks:
    return _Blocks(_fields(b[:, 2:], 16, 4), _half(b[:, :2]))


def _iq4_xs(b: U8) -> _Blocks:
    scales = _fields(b[:, 4:8], 1, 4) | _lift(_fields(b[:, 2:4], 1, 2), 4)
    return _Blocks(_fields(b[:, 8:], 16, 4), _signed(scales, 32), supers=_half(b[:, :2]))


def _signed(scales: U8, bias: int) -> npt.NDArray[np.int8]:
    signed: npt.NDArray[np.int8] = scales.astype(np.int8) - np.int8(bias)
    return signed


def _scales_and_mins(packed: U8) -> tuple[U8, U8]:
    """12 bytes -> 8 scales and 8 offsets of 6 bits.

    Bytes 0-3 and 4-7 hold the first four of each in 6 bits; their top 2 bits and the nibbles of
    bytes 8-11 make the last four.
    """
    low_s, low_m, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([low_s & 63, (rest & 15) | (low_s >> 6) << 4])
    mins = np.hstack([low_m & 63, (rest >> 4) | (low_m >> 6) << 4])
    return scales, mins


_DECODERS: dict[str, Callable[[U8], _Blocks]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k,
    "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}  # fmt: skip


def encode(type_name: str, weight: F32) -> U8:
    """float32 [rows, k] -> uint8 [rows, row_bytes], by ggml's own rounding for each type.

    Raises FormatError for non-finite weights, weights beyond fp16 scales, rows that aren't whole
    blocks, and types that can only be copied.
    """
    if type_name not in _ENCODERS and type_name not in _FLOATS:
        raise FormatError(
            f"{type_name} can't be encoded, only copied; encoded are "
            f"{', '.join([*_FLOATS, *_ENCODERS])}."
        )
    if weight.shape[1] % BLOCK_TYPES[type_name].elements:
        raise FormatError(
            f"{type_name} needs rows of a multiple of {BLOCK_TYPES[type_name].elements} elements, "
            f"not {weight.shape[1]}. Keep this tensor in F16."
        )
    if type_name in _FLOATS:
        return _as_float(type_name, weight)
    blocks = np.ascontiguousarray(weight, np.float32).reshape(-1, BLOCK_TYPES[type_name].elements)
    if not np.isfinite(blocks).all():
        raise FormatError(f"a weight is infinite or not a number, which {type_name} can't hold")
    return np.hstack(_ENCODERS[type_name](blocks)).reshape(weight.shape[0], -1)


def _as_float(type_name: str, weight: F32) -> U8:
    with np.errstate(over="ignore"):
        values = weight.astype(_FLOATS[type_name])
    return np.ascontiguousarray(_fits(weight, values)).view(np.uint8)


def _fits(
    exact: npt.NDArray[np.generic], stored: npt.NDArray[np.generic]
) -> npt.NDArray[np.generic]:
    if np.any(np.isfinite(exact) & ~np.isfinite(stored.astype(np.float32))):
        raise FormatError(f"a value is beyond the range of {stored.dtype}. Keep it in F32 or BF16.")
    return stored


def _halves(values: F32) -> U8:
    """float32 [n, 1] -> the bytes of fp16 [n, 2]."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    return _fits(values, halves).view(np.uint8)


def _inverse(d: F32) -> F32:
    """1 / d; 0 where d is 0 or too small to have an inverse (fp16 holds it as 0 as well)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    finite: F32 = np.where(np.isfinite(inverse), inverse, np.float32(0))
    return finite


def _signed_codes(blocks: F32, bits: int) -> tuple[F32, U8]:
    """The weight of largest magnitude lands on code 0, the most negative level."""
    level = 1 << (bits - 1)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    d = extreme / np.float32(-level)
    codes = np.trunc(blocks * _inverse(d) + np.float32(level + 0.5))
    return d, np.clip(codes, 0, 2 * level - 1).astype(np.uint8)


def _offset_codes(blocks: F32, bits: int) -> tuple[F32, F32, U8]:
    """Minimum on code 0, maximum on the last one."""
    top = (1 << bits) - 1
    low = blocks.min(1, keepdims=True)
    d = (blocks.max(1, keepdims=True) - low) / np.float32(top)
    codes = np.trunc((blocks - low) * _inverse(d) + np.float32(0.5))
    return d, low, np.clip(codes, 0, top).astype(np.uint8)


def _nibbles(codes: U8) -> U8:
    return (codes[:, :16] & 15) | _lift(codes[:, 16:], 4)


def _fifth_bits(codes: U8) -> U8:
    high: U8 = codes >> np.uint8(4)
    return np.packbits(high, axis=1, bitorder="little")


def _encode_q4_0(blocks: F32) -> list[U8]:
    d, codes = _signed_codes(blocks, 4)
    return [_halves(d), _nibbles(codes)]


def _encode_q4_1(blocks: F32) -> list[U8]:
    d, low, codes = _offset_codes(blocks, 4)
    return [_halves(d), _halves(low), _nibbles(codes)]


def _encode_q5_0(blocks: F32) -> list[U8]:
    d, codes = _signed_codes(blocks, 5)
    return [_halves(d), _fifth_bits(codes), _nibbles(codes)]


def _encode_q5_1(blocks: F32) -> list[U8]:
    d, low, codes = _offset_codes(blocks, 5)
    return [_halves(d), _halves(low), _fifth_bits(codes), _nibbles(codes)]


def _encode_q8_0(blocks: F32) -> list[U8]:
    d = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(d)
    size = np.abs(scaled)
    whole = np.floor(size)
    away = whole + (size - whole >= 0.5)  # half away from zero
    return [_halves(d), (np.sign(scaled) * away).astype(np.int8).view(np.uint8)]


_ENCODERS: dict[str, Callable[[F32], list[U8]]] = {
    "Q4_0": _encode_q4_0, "Q4_1": _encode_q4_1, "Q5_0": _encode_q5_0, "Q5_1": _encode_q5_1,
    "Q8_0": _encode_q8_0,
}  # fmt: skip
