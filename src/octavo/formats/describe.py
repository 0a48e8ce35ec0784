"""What there is to know about a format: fields of bits, range, precision, size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

import numpy as np

from octavo.core.errors import FormatError
from octavo.formats.codebooks import named_levels
from octavo.formats.floats import float_dtype, largest
from octavo.formats.gguf_formats import gguf_type_of
from octavo.formats.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerToken
from octavo.formats.layouts import is_ternary, stored_bits
from octavo.formats.number_format import SCALE_BITS, NumberFormat
from octavo.formats.trits import PER_BYTE

Field = Literal["sign", "exponent", "fraction", "code"]

WIDTHS = (576, 4096)  # a small model's row, and a large one's

_EXPONENT_BITS: Mapping[str, int] = MappingProxyType(
    {"fp32": 8, "fp16": 5, "bf16": 8, "e4m3": 4, "e5m2": 5}
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One code as bits, most significant first, and what it stands for."""

    label: str
    bits: str
    value: float


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is stored: `bits` bits for every weight, group, row or tensor."""

    what: str
    bits: int
    shared_by: str


@dataclass(frozen=True, slots=True)
class FormatFacts:
    """Facts of one format. Values of scaled formats are in units of the scale."""

    name: str
    gguf_type: str | None
    fields: tuple[tuple[Field, int], ...]  # of one code, most significant first
    codes: int  # codes that stand for a value
    smallest: float | None  # the range (None: the codebook is learned)
    largest: float | None
    smallest_step: float | None
    decimal_digits: float
    scaled: bool
    weight: str  # how a weight follows from its code
    parts: tuple[Part, ...]
    bits_per_weight: Mapping[int, float | None]  # by width of a square weight; None: doesn't fit


def describe(format: NumberFormat) -> FormatFacts:
    """The facts of `format`."""
    levels = _levels(format)
    low, high, step = _span(format, levels)
    return FormatFacts(
        name=str(format),
        gguf_type=gguf_type_of(format),
        fields=_bit_fields(format),
        codes=_number_of_codes(format),
        smallest=low,
        largest=high,
        smallest_step=step,
        decimal_digits=_digits(format),
        scaled=not format.plain,
        weight=_expression(format),
        parts=_parts(format),
        bits_per_weight={width: _bits_at(format, width) for width in WIDTHS},
    )


def patterns(format: NumberFormat) -> tuple[Pattern, ...]:
    """Telling codes of a format: the largest, one (floats), zero, the smallest."""
    if format.kind == "float":
        return _float_patterns(format)
    levels = _levels(format)
    if levels is None:
        return ()
    codes = {value: code for code, value in levels.items()}
    top, bottom = max(codes), min(codes)
    middle = min(codes, key=lambda value: (abs(value), value))
    named = {"largest": top, "nearest to 0": middle, "smallest": bottom}
    width = _pattern_bits(format)
    return tuple(
        Pattern(label, f"{codes[value]:0{width}b}", value) for label, value in named.items()
    )


def _pattern_bits(format: NumberFormat) -> int:
    """Bits that choose a value: of the code, or of four codes."""
    return format.bits if format.run == 1 else 4 * format.bits


def _float_patterns(format: NumberFormat) -> tuple[Pattern, ...]:
    named = {
        "largest": largest(format.variant),
        "one": 1.0,
        "smallest above 0": _float_step(format),
        "minus one": -1.0,
    }
    return tuple(
        Pattern(label, _float_bits(format, value), value) for label, value in named.items()
    )


def _float_bits(format: NumberFormat, value: float) -> str:
    dtype = float_dtype(format.variant)
    code = int(np.array(value).astype(dtype).view(f"u{dtype.itemsize}"))
    return f"{code:0{format.bits}b}"


def _levels(format: NumberFormat) -> dict[int, float] | None:
    """Code (trellis: window) -> value in units of the scale. None: too many, or learned."""
    if format.variant == "learned" or format.kind == "float":
        return None
    if format.kind == "codebook":
        return dict(enumerate(named_levels(format).tolist()))
    if format.variant == "binary":
        return {0: -1.0, 1: 1.0}
    half = 2 ** (format.bits - 1)
    if format.variant == "ternary":
        return {half + q: float(q) for q in (-1, 0, 1)}
    start = half if format.zero == "none" else 0
    return {code: float(code - start) for code in range(2**format.bits)}


def _span(
    format: NumberFormat, levels: dict[int, float] | None
) -> tuple[float | None, float | None, float | None]:
    if format.kind == "float":
        return -largest(format.variant), largest(format.variant), _float_step(format)
    if levels is None:
        return None, None, None
    ordered = sorted(set(levels.values()))
    return ordered[0], ordered[-1], min(b - a for a, b in pairwise(ordered))


def _bit_fields(format: NumberFormat) -> tuple[tuple[Field, int], ...]:
    if format.kind != "float":
        return (("code", format.bits),)
    exponent = _EXPONENT_BITS[format.variant]
    return (("sign", 1), ("exponent", exponent), ("fraction", format.bits - 1 - exponent))


def _float_step(format: NumberFormat) -> float:
    exponent = _EXPONENT_BITS[format.variant]
    return math.ldexp(1.0, 2 - (1 << (exponent - 1)) - (format.bits - 1 - exponent))


def _number_of_codes(format: NumberFormat) -> int:
    if format.kind != "float":
        return 3 if format.variant == "ternary" else 1 << format.bits
    if format.variant == "e4m3":  # no infinities, one NaN of either sign
        return (1 << format.bits) - 2
    return (1 << format.bits) - (1 << (format.bits - _EXPONENT_BITS[format.variant]))


def _digits(format: NumberFormat) -> float:
    if format.kind == "float":
        return (format.bits - _EXPONENT_BITS[format.variant]) * math.log10(2)
    return math.log10(_number_of_codes(format))


def _parts(format: NumberFormat) -> tuple[Part, ...]:
    parts = [Part(_code_name(format), format.bits, "one weight")]
    if is_ternary(format):
        parts = [Part("five codes", 8, f"{PER_BYTE} weights of a row")]
    if format.plain:
        return tuple(parts)
    shared, top = _shared(format.granularity), format.super_scale
    scale = top.bits if top else SCALE_BITS[format.scale]
    kind = ("signed integer" if top.signed else "unsigned integer") if top else format.scale
    parts.append(Part(f"scale ({kind})", scale, shared))
    if format.zero == "int":
        parts.append(Part("zero point (integer)", format.bits, shared))
    if format.zero == "real":
        parts.append(Part(f"offset ({kind})", scale, shared))
    if top:
        both = 2 if format.zero == "real" else 1
        name = "super-scale (fp16)" if both == 1 else "super-scale and super-offset (fp16)"
        parts.append(Part(name, 16 * both, f"{top.group} weights of a row"))
    if format.variant == "learned":
        parts.append(Part("codebook (fp32)", 32 * 2**format.bits, "the tensor"))
    return tuple(parts)


def _expression(format: NumberFormat) -> str:
    if format.plain:
        return "the value itself"
    if format.run > 1:
        return "s * level[code and the next three of its run of 32, a ring]"
    if format.kind != "int":
        return "s * value" if format.kind == "float" else "s * level[code]"
    if format.variant == "binary":
        return "s * (2 * code - 1)"
    if format.zero == "real":
        return "s * code + offset"
    return f"s * (code - {'zero' if format.zero == 'int' else 1 << (format.bits - 1)})"


def _code_name(format: NumberFormat) -> str:
    return "value" if format.kind == "float" else "code"


def _shared(granularity: Granularity) -> str:
    match granularity:
        case PerTensor():
            return "the tensor"
        case PerChannel():
            return "a row"
        case PerToken():
            return "a token"
        case PerGroup(size):
            return f"{size} weights of a row"


def _bits_at(format: NumberFormat, width: int) -> float | None:
    try:
        return stored_bits(format, (width, width))
    except FormatError:
        return None
