"""How each weight is stored and run: decided once, before a byte is packed.

"source" keeps what the file holds: integers and codebooks of up to 16 levels run with a8, bf16 with
bf16 activations, and fp16 and fp32 with fp32 ones (rounding them to bf16 would lose digits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from octavo import _native
from octavo.backends.base import ActivationFormat, RuntimeConfig
from octavo.backends.native.zeros import Run, Zeros, zeros_of
from octavo.backends.served import activations_for, largest_input
from octavo.core.errors import FormatError, UnsupportedError
from octavo.formats.activations import a8_group_for, padded_width, takes_a8, takes_a16
from octavo.formats.gguf_formats import GGUF_FORMATS
from octavo.formats.granularity import PerGroup, PerTensor
from octavo.formats.layouts import BLOCKS, DENSE, NATIVE
from octavo.formats.number_format import BF16, FP32, NumberFormat, SuperScale
from octavo.formats.rounding import Convention, resolve_convention
from octavo.io.weights import TensorView
from octavo.spec.decoder import Role

Method = Literal["blocks", "floats", "rounded", "encoded"]
ACTIVATIONS: Mapping[_native.Act, ActivationFormat] = MappingProxyType(
    {
        _native.Act.A8: "a8",
        _native.Act.A16: "a16",
        _native.Act.A8A16: "a8a16",
        _native.Act.BF16: "abf16",
        _native.Act.F32: "a32",
    }
)
SCALES: Mapping[ActivationFormat, _native.ActScale] = MappingProxyType(
    {
        "a8_token": _native.ActScale.TOKEN,
        "a8_tensor": _native.ActScale.TENSOR,
        "a8_static": _native.ActScale.STATIC,
        "llm_int8": _native.ActScale.OUTLIERS,
    }
)  # of a8, for whole rows
_INTEGER_ACTS = (_native.Act.A8, _native.Act.A16, _native.Act.A8A16)
TWO_LEVELS = (_native.Scaling.SUB4, _native.Scaling.SUB6, _native.Scaling.SUB8)
_FLOAT_CODES = MappingProxyType(
    {"fp32": _native.Code.F32, "fp16": _native.Code.F16, "bf16": _native.Code.BF16}
)
_SPARSE = MappingProxyType(
    {
        (NATIVE, 4): _native.Code.SPARSE_NIBBLE,
        (NATIVE, 8): _native.Code.SPARSE_BYTE,
        (BLOCKS, 4): _native.Code.BLOCK_NIBBLE,
        (BLOCKS, 8): _native.Code.BLOCK_BYTE,
    }
)
_NATIVE_CONVENTIONS: tuple[Convention, ...] = ("absmax", "full", "signed", "no_clip", "minmax")


@dataclass(frozen=True, slots=True)
class Storage:
    """How one matrix is held and multiplied.

    method      "blocks": GGUF blocks as they are; "floats": values, rounded to bf16 where code
                says so; "rounded": requantized natively; "encoded": through the numpy encoder.
    convention  of a rounded one.
    zeros       how those are held that the file leaves out.
    scale       what shares a scale of activations; peak: the input that becomes 127, of STATIC.
    """

    role: Role
    shape: tuple[int, int]
    format: NumberFormat
    method: Method
    act: _native.Act
    source_type: str
    source_format: NumberFormat
    convention: str = ""
    zeros: Zeros = field(default_factory=Zeros)
    scale: _native.ActScale = _native.ActScale.GROUP
    peak: float = 0.0

    @property
    def kind(self) -> ActivationFormat:
        """What it was asked for, or stands for "auto"."""
        scaled = next((name for name, scale in SCALES.items() if scale == self.scale), None)
        return scaled or ACTIVATIONS[self.act]

    @property
    def activations(self) -> str:
        """Name of the activations' format, as receipts have it."""
        name = self.kind
        if self.act not in _INTEGER_ACTS or name in SCALES:
            return name
        group = _group(self.format, self.shape)
        return f"{name}_g{a8_group_for(group, padded_width(self.shape[1]))}"


def storage(
    role: Role,
    view: TensorView,
    config: RuntimeConfig,
    tied: bool = False,
    maxima: Mapping[str, float] = MappingProxyType({}),
) -> Storage:
    """The storage of a role's matrix; `tied`: the embedding is the head as well; `maxima`: the
    largest input of each matrix, for a8_static.

    Raises FormatError when its shape can't take the format, UnsupportedError when the activations
    asked for don't go with it.
    """
    shape = (view.shape[0], view.shape[1])
    stored = view.raw(0, 1).type
    wanted = wanted_format(role, config, tied)
    target = view.format if wanted == "source" else NumberFormat.parse(wanted)
    _check_shape(role, target, shape)
    method, convention = _method(target, view.format, stored)
    act = _activations(role, target, config)
    _check_group(role, target, shape, act)
    scale = SCALES.get(activations_for(role, config), _native.ActScale.GROUP)
    outliers = scale == _native.ActScale.OUTLIERS
    run = Run(target, act in _INTEGER_ACTS, config.isa, target == view.format, outliers)
    zeros = zeros_of(view, run)
    peak = largest_input(role, maxima) if scale == _native.ActScale.STATIC else 0.0
    return Storage(
        role, shape, target, method, act, stored, view.format, convention, zeros, scale, peak
    )


def wanted_format(role: Role, config: RuntimeConfig, tied: bool = False) -> str:
    """The name in `config.keep` that fits the role best, else `config.format`.

    Keys are a part ("down"), or a part of one layer ("layers.3.down"); the embedding of a tied
    model answers to "head" too.
    """
    names = [str(role.part)] if role.layer is None else [f"layers.{role.layer}.{role.part}"]
    names.append(str(role.part))
    if tied and role.part == "embed":
        names.append("head")
    kept = dict(config.keep)
    return next((kept[name] for name in names if name in kept), config.format)


def is_requantized(items: list[Storage]) -> bool:
    """Whether anything is held in another format than its file's; fp32 holds every value."""
    return any(item.format not in (item.source_format, FP32) for item in items)


def pack_plan(item: Storage) -> _native.PackPlan:
    """The panels of a matrix. For "encoded" ones the packer completes it from the first codes."""
    if item.method == "blocks":
        return _native.PackPlan.gguf(item.source_type, *item.shape)
    plan = plan_of(item.format, item.shape, item.zeros.held)
    item.zeros.set_blocks(plan)
    return plan


def plan_of(format: NumberFormat, shape: tuple[int, int], held: str = DENSE) -> _native.PackPlan:
    """The panels that hold a weight of `shape` in a format; without its codebook, and its blocks
    where these are held."""
    plan = _native.PackPlan()
    plan.n, plan.k = shape
    if format.plain and format.bits > 8:
        plan.code = _FLOAT_CODES[format.variant]
        return plan
    plan.code = _code(format) if held == DENSE else _SPARSE[held, format.bits]
    plan.group = _group(format, shape)
    plan.zero = 0 if format.zero != "none" else 2 ** (format.bits - 1)
    plan.has_offset, plan.has_zero = format.zero == "real", format.zero == "int"
    plan.scaling = scaling(format)
    if plan.scaling in TWO_LEVELS and format.super_scale:
        plan.super_group = format.super_scale.group
        plan.sub_bias = sub_bias(format.super_scale)
    return plan


def _code(format: NumberFormat) -> _native.Code:
    """How codes lie in panels."""
    return _native.Code.TRELLIS if format.run > 1 else _native.code_for(format.bits)


def native_bits(format: NumberFormat, shape: tuple[int, int]) -> float:
    """Bits per weight of `shape` = (out, in) as panels hold it, with padding. Raises FormatError
    when the shape doesn't fit."""
    return 8 * packed_size(format, shape) / (shape[0] * shape[1])


def packed_size(format: NumberFormat, shape: tuple[int, int]) -> int:
    """Bytes of a weight of `shape` as panels hold it. Raises FormatError when it doesn't fit."""
    format.groups(shape)
    return plan_of(format, shape).packed_bytes


def scaling(format: NumberFormat) -> _native.Scaling:
    """How panels hold the scales of a format (without a tensor scale)."""
    top = format.super_scale
    if top is None or not isinstance(format.granularity, PerGroup):
        return _native.Scaling.F16 if format.scale == "fp16" else _native.Scaling.F32
    per_super = top.group // format.granularity.size
    if per_super & (per_super - 1):
        return _native.Scaling.F32
    return TWO_LEVELS[(top.bits > 4) + (top.bits > 6)]


def sub_bias(top: SuperScale) -> int:
    """What panels add to sub-scales, so that they are unsigned."""
    return (8, 32, 128)[(top.bits > 4) + (top.bits > 6)] if top.signed else 0


def _method(target: NumberFormat, stored: NumberFormat, type_name: str) -> tuple[Method, str]:
    if target.plain and target.bits > 8:
        return "floats", ""
    if target == stored:
        return ("blocks" if GGUF_FORMATS.get(type_name) == stored else "encoded"), ""
    convention = resolve_convention(target, None)
    if _rounds_natively(target) and convention in _NATIVE_CONVENTIONS:
        return "rounded", convention
    return "encoded", ""


def _rounds_natively(target: NumberFormat) -> bool:
    return (
        target.kind == "int"
        and not target.variant
        and target.bits >= 2
        and target.scale in ("fp16", "fp32")
        and target.super_scale is None
        and not isinstance(target.granularity, PerTensor)
        and target.zero in ("none", "int")
    )


def _activations(role: Role, target: NumberFormat, config: RuntimeConfig) -> _native.Act:
    asked = activations_for(role, config)
    if asked == "auto":
        if takes_a8(target):
            return _native.Act.A8
        exact = target.plain and target.bits > 8 and target != BF16
        return _native.Act.F32 if exact else _native.Act.BF16
    kind = "a8" if asked in SCALES else asked
    act = next(act for act, name in ACTIVATIONS.items() if name == kind)
    if act in _INTEGER_ACTS and not (takes_a8 if kind == "a8" else takes_a16)(target):
        codebooks = " and codebooks of up to 16 levels" if kind == "a8" else ""
        raise UnsupportedError(
            f"{role} is {target}: {asked} multiplies integers{codebooks}; "
            "use activations auto or abf16, or an integer format"
        )
    return act


def _group(format: NumberFormat, shape: tuple[int, int]) -> int:
    return format.granularity.size if isinstance(format.granularity, PerGroup) else shape[1]


def _check_shape(role: Role, target: NumberFormat, shape: tuple[int, int]) -> None:
    try:
        target.groups(shape)
    except FormatError as error:
        raise FormatError(f"{role}: {error}") from error


def _check_group(
    role: Role, target: NumberFormat, shape: tuple[int, int], act: _native.Act
) -> None:
    if target.plain:
        return
    group = _group(target, shape)
    step = 16 if act not in _INTEGER_ACTS or group == 16 else 32
    if group < shape[1] and group % step:
        raise FormatError(
            f"{role} as {target}: kernels take groups that are multiples of {step}; "
            "use a group of 32, 64 or 128, or _channel"
        )
