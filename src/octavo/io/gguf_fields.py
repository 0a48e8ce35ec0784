"""GGUF blocks from their fields, the inverse of what `gguf_blocks` takes apart; exact blocks of a
tensor that is stored in a format of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.formats.gguf_formats import GGUF_FORMATS, gguf_type_of
from octavo.formats.quantized import QuantizedTensor
from octavo.io.mapping import U8
from octavo.io.stored import BLOCK_TYPES

Array = npt.NDArray[Any]
_Parts = tuple[U8, U8, U8, U8, U8]  # codes, scales, mins, top, floor


class Fields(NamedTuple):
    """n blocks: codes uint8 [n, elements], unsigned; scales and mins [n, groups], integers of any
    type, read where there are two levels; tops and floors fp16 [n], as stored."""

    codes: U8
    scales: Array
    mins: Array
    tops: Array
    floors: Array


def join(type_name: str, fields: Fields) -> U8:
    """uint8 [n, block bytes]."""
    parts = (
        fields.codes, _byte(fields.scales), _byte(fields.mins), _half(fields.tops),
        _half(fields.floors),
    )  # fmt: skip
    return np.hstack(_JOINERS[type_name](parts))


def _byte(values: Array) -> U8:
    return values.astype(np.int16).astype(np.uint8)


def _half(values: Array) -> U8:
    return np.ascontiguousarray(values, np.float16).reshape(-1, 1).view(np.uint8)


def runs(fields: U8, run: int, bits: int) -> U8:
    """[n, count] -> uint8 [n, count * bits / 8]: of each run of bytes the low fields come first."""
    per_byte = 8 // bits
    spread = fields.reshape(len(fields), -1, per_byte, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    packed: U8 = np.bitwise_or.reduce(spread << shifts, axis=2).reshape(len(fields), -1)
    return packed


def _high(codes: U8) -> U8:
    bits: U8 = (codes >> np.uint8(4)) & np.uint8(1)
    return np.packbits(bits, axis=1, bitorder="little")


def _low(codes: U8, bits: int) -> U8:
    low: U8 = codes & np.uint8((1 << bits) - 1)
    return low


def _scales_and_mins(scales: U8, mins: U8) -> U8:
    """8 scales and 8 offsets of 6 bits -> 12 bytes."""
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = mins[:, :4] | (mins[:, 4:] >> 4) << 6
    third = (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4
    return np.hstack([first, second, third])


def _q4_0(p: _Parts) -> list[U8]:
    return [p[3], runs(p[0], 16, 4)]


def _q4_1(p: _Parts) -> list[U8]:
    return [p[3], p[4], runs(p[0], 16, 4)]


def _q5_0(p: _Parts) -> list[U8]:
    return [p[3], _high(p[0]), runs(_low(p[0], 4), 16, 4)]


def _q5_1(p: _Parts) -> list[U8]:
    return [p[3], p[4], _high(p[0]), runs(_low(p[0], 4), 16, 4)]


def _q8_0(p: _Parts) -> list[U8]:
    return [p[3], p[0] ^ np.uint8(128)]


def _q2_k(p: _Parts) -> list[U8]:
    return [p[1] | p[2] << np.uint8(4), runs(p[0], 32, 2), p[3], p[4]]


def _q3_k(p: _Parts) -> list[U8]:
    scales = p[1] + np.uint8(32)
    low, high = runs(_low(scales, 4), 8, 4), runs(scales >> np.uint8(4), 4, 2)
    return [runs(p[0] >> np.uint8(2), 32, 1), runs(_low(p[0], 2), 32, 2), low, high, p[3]]


def _q4_k(p: _Parts) -> list[U8]:
    return [p[3], p[4], _scales_and_mins(p[1], p[2]), runs(p[0], 32, 4)]


def _q5_k(p: _Parts) -> list[U8]:
    high, low = runs(p[0] >> np.uint8(4), 32, 1), runs(_low(p[0], 4), 32, 4)
    return [p[3], p[4], _scales_and_mins(p[1], p[2]), high, low]


def _q6_k(p: _Parts) -> list[U8]:
    low, high = runs(_low(p[0], 4), 64, 4), runs(p[0] >> np.uint8(4), 32, 2)
    return [low, high, p[1], p[3]]


def _iq4_xs(p: _Parts) -> list[U8]:
    scales = p[1] + np.uint8(32)
    high, low = runs(scales >> np.uint8(4), 1, 2), runs(_low(scales, 4), 1, 4)
    return [p[3], high, low, runs(p[0], 16, 4)]


_JOINERS: dict[str, Callable[[_Parts], list[U8]]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k,
    "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _q4_0,
    "IQ4_XS": _iq4_xs,
}  # fmt: skip


def exact_type(tensor: QuantizedTensor) -> str | None:
    """The smallest GGUF type whose blocks hold every value of the tensor, or None.

    Groups that are multiples of 32 repeat their scale; integer zero points go into codes of more
    bits; scales of other types, and tensor scales, have to be numbers of fp16.
    """
    format = tensor.format
    if format.plain:
        return gguf_type_of(format)
    if format.super_scale or format.variant == "iq4nl" or format.zero == "real":
        exact = tensor.tensor_scale == 1 and _halves(tensor)
        return gguf_type_of(format) if exact else None
    if format.kind != "int" or tensor.shape[1] % 32 or not _halves(tensor):
        return None
    if (tensor.shape[1] // tensor.steps().shape[1]) % 32:
        return None
    low, high = _reach(tensor)
    ends = (("Q4_0", 8), ("Q5_0", 16), ("Q8_0", 128))
    return next((name for name, end in ends if -end <= low and high < end), None)


def exact_blocks(tensor: QuantizedTensor, type_name: str) -> U8:
    """uint8 [rows, row_bytes] of the type that `exact_type` gave."""
    rows, width = tensor.shape
    if tensor.format.plain:
        return np.ascontiguousarray(tensor.codes).view(np.uint8).reshape(rows, -1)
    if tensor.format == GGUF_FORMATS[type_name]:
        return join(type_name, _own_fields(tensor, type_name)).reshape(rows, -1)
    zero = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}[type_name]
    codes = (_centred(tensor) + zero).astype(np.uint8).reshape(-1, 32)
    steps = np.broadcast_to(tensor.steps(), (rows, tensor.steps().shape[1]))
    tops = np.repeat(steps, width // 32 // steps.shape[1], axis=1).reshape(-1)
    return join(type_name, Fields(codes, tops, tops, tops.astype(np.float16), tops)).reshape(
        rows, -1
    )


def _own_fields(tensor: QuantizedTensor, type_name: str) -> Fields:
    """The fields as they stand: the format is the type's own."""
    block = BLOCK_TYPES[type_name].elements
    count = tensor.shape[0] * tensor.shape[1] // block
    scales, zeros = tensor.scales, tensor.zeros
    assert scales is not None
    none = np.zeros(count, np.float16)
    codes = tensor.unpacked_codes().reshape(count, block)
    if tensor.super_scales is None:
        floors = none if zeros is None else zeros
        return Fields(codes, none, none, scales, floors)
    mins = np.zeros(scales.shape, np.uint8) if zeros is None else zeros
    floors = none if tensor.super_zeros is None else tensor.super_zeros
    return Fields(
        codes, scales.reshape(count, -1), mins.reshape(count, -1), tensor.super_scales, floors
    )


def _halves(tensor: QuantizedTensor) -> bool:
    """Whether every scale and offset of one level is a number of fp16."""
    if tensor.format.super_scale:
        return True
    offsets = tensor.offsets() if tensor.format.zero == "real" else None
    with np.errstate(over="ignore"):
        return all(
            np.array_equal(part.astype(np.float16).astype(np.float32), part)
            for part in (tensor.steps(), offsets)
            if part is not None
        )


def _reach(tensor: QuantizedTensor) -> tuple[int, int]:
    """Least and greatest value that the scale multiplies, by the format where it says enough."""
    bits = tensor.format.bits
    if tensor.format.variant:
        return -1, 1
    if tensor.format.zero == "none":
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    centred = _centred(tensor)
    return int(centred.min()), int(centred.max())


def _centred(tensor: QuantizedTensor) -> npt.NDArray[np.int16]:
    """int16 [out, in]: what the scale multiplies."""
    codes: npt.NDArray[np.int16] = tensor.unpacked_codes().astype(np.int16)
    if tensor.format.variant == "binary":
        codes *= 2
        codes -= 1
        return codes
    if tensor.format.zero == "none":
        codes -= np.int16(1 << (tensor.format.bits - 1))
        return codes
    assert tensor.zeros is not None
    rows, groups = tensor.shape[0], tensor.zeros.shape[1]
    zeros = np.broadcast_to(tensor.zeros.astype(np.int16), (rows, groups))
    codes -= np.repeat(zeros, tensor.shape[1] // groups, axis=1)
    return codes
