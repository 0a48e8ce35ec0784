"""`NumberFormat`: how a value is stored. Data only, compared by value; knows no kernel."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn

from octavo.core.errors import FormatError
from octavo.formats.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerToken

Kind = Literal["float", "int", "codebook"]
Zero = Literal["none", "int", "real"]
ScaleType = Literal["none", "fp16", "bf16", "fp32", "e4m3", "e8m0", "int"]

FLOAT_BITS: Mapping[str, int] = MappingProxyType(
    {"fp32": 32, "fp16": 16, "bf16": 16, "e4m3": 8, "e5m2": 8}
)
SCALE_BITS: Mapping[str, int] = MappingProxyType(
    {"none": 0, "fp16": 16, "bf16": 16, "fp32": 32, "e4m3": 8, "e8m0": 8}
)
_INT_VARIANTS: Mapping[str, int] = MappingProxyType({"ternary": 2, "binary": 1})
_CODEBOOK_VARIANTS: Mapping[str, int] = MappingProxyType({"nf4": 4, "iq4nl": 4, "trellis2": 2})
_RUNS: Mapping[str, int] = MappingProxyType({"trellis2": 32})
_PER_TENSOR = PerTensor()
_OFFSET_SCALES = ("fp16", "bf16", "fp32", "int")

# One name of every idea; what `octavo formats` lists and what a typo is compared with.
COMMON_NAMES = (
    *("fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp8_e4m3_channel"),
    *("int8_tensor", "int8_channel", "int8_g32", "int8_g64", "int6_g32", "int5_g32"),
    *("int4_g32", "int4_g64", "int4_g128", "int4_channel", "int4_g32_asym", "int4_g64_asym"),
    *("int4_g128_asym", "int4_g32_offset", "int5_g32_offset", "int4_g32_offset_su6x256"),
    *("int5_g32_offset_su6x256", "int6_g16_si8x256", "int3_g32", "int3_g64", "int3_g64_asym"),
    *("int3_g16_si6x256", "int2_g32", "int2_g64_asym", "int2_g16_offset_su4x256"),
    *("nf4_g64", "nf4_g64_sfp32", "iq4nl_g32", "iq4nl_g32_si6x256", "lut4_channel"),
    *("ternary_tensor", "binary_channel", "trellis2_g64", "trellis2_channel"),
)

_NAME = re.compile(
    r"(?P<base>fp32|fp16|bf16|fp8_e4m3|fp8_e5m2|int[1-8]|nf4|iq4nl|trellis2|lut[1-8]|ternary|binary)"
    r"(?:_(?P<where>tensor|channel|token|g[1-9][0-9]{0,6}))?"
    r"(?:_(?P<zero>asym|offset))?"
    r"(?:_s(?P<scale>fp16|bf16|fp32|e4m3|e8m0|[iu][2-8]x[1-9][0-9]{0,6}))?"
)


@dataclass(frozen=True, slots=True)
class SuperScale:
    """Two-level scales (K-quants): integer sub-scales under one float scale per `group` inputs.

    The scale of a sub-group is `float(super) * int(sub)`, exact in fp32; likewise the offset,
    which is `-float(super_min) * int(sub_min)`. Sub-scales take `bits` bits, offsets too.
    """

    bits: int
    signed: bool
    group: int = 256


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How a value is represented: `w = fl(fl(s * (q - z)) + m)`, in fp32, in this order.

    kind        float (no scale needed), int (codes of a uniform grid), codebook (code -> level).
    bits        bits of one code.
    variant     the element type where kind and bits don't settle it: "fp32", "fp16", "bf16",
                "e4m3", "e5m2" for floats; "nf4", "iq4nl", "learned" for codebooks, and "trellis2",
                whose levels go by windows of four codes (trellis.py); "ternary" and "binary" for
                ints of {-1, 0, 1} and {-1, 1}; otherwise "".
    zero        "none": the grid is symmetric, code 2**(bits-1) stands for 0 (binary has no 0: its
                codes 0 and 1 stand for -1 and 1);
                "int": an integer zero point per group; "real": an offset m per group (Q4_1, HQQ).
    scale       type of the stored scale and offset ("int" when `super_scale` is given; "none"
                for a plain float).
    super_scale two-level scales, or None.

    `parse(str(f)) == f` for every valid f; the grammar stands in `docs/formats.md`. An invalid
    combination raises FormatError.
    """

    kind: Kind
    bits: int
    granularity: Granularity = _PER_TENSOR
    variant: str = ""
    zero: Zero = "none"
    scale: ScaleType = "fp16"
    super_scale: SuperScale | None = None

    def __post_init__(self) -> None:
        problem = _element_problem(self) or _scale_problem(self) or _super_problem(self)
        if problem:
            raise FormatError(f"number format ({_fields(self)}): {problem}")

    def __str__(self) -> str:
        if self.kind == "float" and self.scale == "none":
            return _base_name(self)
        zero = {"none": "", "int": "_asym", "real": "_offset"}[self.zero]
        return f"{_base_name(self)}_{_where_name(self.granularity)}{zero}{_scale_name(self)}"

    @classmethod
    def parse(cls, text: str) -> NumberFormat:
        """The format named by `text` (docs/formats.md). Raises FormatError naming the nearest."""
        match = _NAME.fullmatch(text.strip().lower())
        if match is None:
            _refuse(text, "is not a number format")
        base, where, zero, scale = match.group("base", "where", "zero", "scale")
        if where is None and not base.startswith(("fp", "bf")):
            _refuse(text, "does not say what shares a scale (_tensor, _channel or _g32)")
        if where is None and (zero or scale):
            _refuse(text, "has a scale but does not say what shares it")
        kind, bits, variant = _parse_base(base)
        if where is None:
            return cls(kind, bits, PerTensor(), variant, "none", "none")
        return cls(
            kind, bits, _parse_where(where), variant, _parse_zero(zero), *_parse_scale(scale)
        )

    @property
    def plain(self) -> bool:
        """A float stored as itself, without scales."""
        return self.scale == "none"

    @property
    def run(self) -> int:
        """Weights of a row whose codes go together: 32 on a trellis, else 1."""
        return _RUNS.get(self.variant, 1)

    @property
    def levels(self) -> int:
        """How many levels a codebook has: one a code, on a trellis one a window."""
        return 256 if self.run > 1 else 2**self.bits

    def groups(self, shape: tuple[int, int]) -> tuple[int, int, int]:
        """(rows of scales, scales per row, weights per scale) for a weight of `shape` = (out, in).

        Raises FormatError naming the shape, and group sizes that would fit, when it can't be split.
        """
        rows, width = shape
        if rows < 1 or width < 1:
            raise FormatError(f"{self} can't take a weight of [{rows}, {width}]: it is empty")
        if width % self.run:
            raise FormatError(
                f"{self} can't take a weight of [{rows}, {width}]: {width} inputs don't split into "
                f"runs of {self.run}; keep it in another format, such as int2_channel"
            )
        match self.granularity:
            case PerTensor():
                return 1, 1, rows * width
            case PerChannel() | PerToken():
                return rows, 1, width
            case PerGroup(size):
                _check_width(self, shape, size)
                return rows, width // size, size

    def supers(self, shape: tuple[int, int]) -> int:
        """Super-scales per row (0 without two-level scales)."""
        return shape[1] // self.super_scale.group if self.super_scale else 0

    def bits_per_value(self, shape: tuple[int, int]) -> float:
        """Bits of storage per weight of `shape` = (out, in): codes, scales, zeros or offsets,
        super-scales and a learned codebook. Raises FormatError when the shape doesn't fit."""
        rows, per_row, _ = self.groups(shape)
        parts = rows * per_row * (self._scale_bits() + self._zero_bits())
        parts += shape[0] * self.supers(shape) * 16 * (2 if self.zero == "real" else 1)
        if self.variant == "learned":
            parts += 32 * 2**self.bits
        return self.bits + parts / (shape[0] * shape[1])

    def _scale_bits(self) -> int:
        return self.super_scale.bits if self.super_scale else SCALE_BITS[self.scale]

    def _zero_bits(self) -> int:
        return {"none": 0, "int": self.bits, "real": self._scale_bits()}[self.zero]


def _check_width(format: NumberFormat, shape: tuple[int, int], size: int) -> None:
    width = shape[1]
    step = format.super_scale.group if format.super_scale else size
    if width % step == 0:
        return
    fits = [g for g in range(16, 513, 16) if width % g == 0]
    fits = fits or [g for g in range(2, width + 1) if width % g == 0]
    what = "super-groups" if step != size else "groups"
    raise FormatError(
        f"{format} can't take a weight of [{shape[0]}, {width}]: {width} inputs don't split into "
        f"{what} of {step}. Groups that fit: {', '.join(map(str, fits)) or 'none'}; "
        "or use _channel"
    )


def _fields(f: NumberFormat) -> str:
    return (
        f"kind={f.kind!r}, bits={f.bits}, granularity={f.granularity}, variant={f.variant!r}, "
        f"zero={f.zero!r}, scale={f.scale!r}, super_scale={f.super_scale}"
    )


def _element_problem(f: NumberFormat) -> str:
    if f.kind == "float":
        return _variant_problem(f, FLOAT_BITS)
    if f.kind == "codebook":
        return (
            ""
            if f.variant == "learned" and 1 <= f.bits <= 8
            else _variant_problem(f, _CODEBOOK_VARIANTS)
        )
    if f.kind != "int":
        return "kind must be float, int or codebook"
    if f.variant:
        return _variant_problem(f, _INT_VARIANTS)
    if not 1 <= f.bits <= 8:
        return "integers have 1 to 8 bits"
    if f.bits == 1 and f.zero == "none":
        return "a symmetric 1-bit integer is `binary`"
    return ""


def _variant_problem(f: NumberFormat, known: Mapping[str, int]) -> str:
    if f.variant not in known:
        return f"variant must be one of {', '.join(known)}"
    if f.bits != known[f.variant]:
        return f"{f.variant} has {known[f.variant]} bits"
    return ""


def _scale_problem(f: NumberFormat) -> str:
    if f.zero not in ("none", "int", "real"):
        return "zero must be none, int or real"
    if f.scale not in SCALE_BITS and f.scale != "int":
        return f"scale must be one of {', '.join(SCALE_BITS)}, int"
    if f.zero != "none" and (f.kind != "int" or f.variant):
        return "only plain integers have zero points or offsets"
    if f.scale == "none":
        return _plain_problem(f)
    if f.kind == "float" and f.bits > 8:
        return f'{f.variant} takes no scale (scale="none")'
    if f.zero == "real" and f.scale not in _OFFSET_SCALES:
        return f"{f.scale} can't hold an offset"
    if isinstance(f.granularity, PerGroup) and not 1 <= f.granularity.size < 10_000_000:
        return "a group holds 1 to 9,999,999 values"
    if isinstance(f.granularity, PerGroup) and f.granularity.size % f.run:
        return f"a group of a trellis holds whole runs of {f.run}: use _g32, _g64 or _g128"
    return ""


def _plain_problem(f: NumberFormat) -> str:
    if f.kind != "float":
        return f"{f.kind} codes need a scale"
    return (
        "" if f.granularity == PerTensor() else "without a scale nothing is shared: use PerTensor"
    )


def _super_problem(f: NumberFormat) -> str:
    top = f.super_scale
    if top is None:
        return "integer scales need a super_scale" if f.scale == "int" else ""
    if f.scale != "int":
        return 'a super_scale needs scale="int"'
    if not isinstance(f.granularity, PerGroup):
        return "a super_scale needs groups"
    if not 2 <= top.bits <= 8:
        return "sub-scales have 2 to 8 bits"
    if not 1 <= top.group < 10_000_000 or top.group % f.granularity.size:
        return "the super-scale's group must be a multiple of the group"
    if f.kind == "float" or f.zero == "int":
        return "two-level scales go with integers (plain or with offsets) and codebooks"
    return "two-level offsets have unsigned sub-scales" if f.zero == "real" and top.signed else ""


def _base_name(f: NumberFormat) -> str:
    if f.kind == "float":
        return f"fp8_{f.variant}" if f.bits == 8 else f.variant
    if f.variant == "learned":
        return f"lut{f.bits}"
    return f.variant or f"int{f.bits}"


def _where_name(granularity: Granularity) -> str:
    match granularity:
        case PerTensor():
            return "tensor"
        case PerChannel():
            return "channel"
        case PerToken():
            return "token"
        case PerGroup(size):
            return f"g{size}"


def _scale_name(f: NumberFormat) -> str:
    if f.super_scale:
        sign = "i" if f.super_scale.signed else "u"
        return f"_s{sign}{f.super_scale.bits}x{f.super_scale.group}"
    return "" if f.scale == "fp16" else f"_s{f.scale}"


def _parse_base(base: str) -> tuple[Kind, int, str]:
    variant = base.removeprefix("fp8_")
    if variant in FLOAT_BITS:
        return "float", FLOAT_BITS[variant], variant
    if base in _CODEBOOK_VARIANTS:
        return "codebook", _CODEBOOK_VARIANTS[base], base
    if base in _INT_VARIANTS:
        return "int", _INT_VARIANTS[base], base
    if base.startswith("lut"):
        return "codebook", int(base[3:]), "learned"
    return "int", int(base[3:]), ""


def _parse_where(where: str) -> Granularity:
    named: dict[str, Granularity] = {
        "tensor": PerTensor(),
        "channel": PerChannel(),
        "token": PerToken(),
    }
    return named.get(where) or PerGroup(int(where[1:]))


def _parse_zero(zero: str | None) -> Zero:
    if zero is None:
        return "none"
    return "int" if zero == "asym" else "real"


def _parse_scale(scale: str | None) -> tuple[ScaleType, SuperScale | None]:
    named: dict[str | None, ScaleType] = {
        None: "fp16",
        "fp16": "fp16",
        "bf16": "bf16",
        "fp32": "fp32",
        "e4m3": "e4m3",
        "e8m0": "e8m0",
    }
    if scale is None or scale in named:
        return named[scale], None
    bits, group = scale[1:].split("x")
    return "int", SuperScale(int(bits), scale[0] == "i", int(group))


def _refuse(text: str, problem: str) -> NoReturn:
    from octavo.formats.gguf_formats import GGUF_FORMATS  # needs this module

    if text.strip().upper() in GGUF_FORMATS:
        hint = f"as a GGUF type it is written {GGUF_FORMATS[text.strip().upper()]}"
    else:
        typed = text.strip().lower()
        known = [name for name in COMMON_NAMES if name.startswith(typed)] or COMMON_NAMES
        near = difflib.get_close_matches(typed, known, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "one is int4_g32"
    raise FormatError(f"{text!r} {problem}; {hint} (`octavo formats` lists them)")


FP32 = NumberFormat("float", 32, variant="fp32", scale="none")
FP16 = NumberFormat("float", 16, variant="fp16", scale="none")
BF16 = NumberFormat("float", 16, variant="bf16", scale="none")
