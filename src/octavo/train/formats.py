"""Fake quantization in the formats that are served: prepare = convert = serve, bit for bit.

Forward is round to nearest as `octavo.formats.rtn` encodes it. Backward is the straight-through
estimator: scales, zero points and offsets follow the weights but count as constants. The gradient
is zero where a weight was clipped, that is moved by more than half the widest gap between levels;
a weight at the end of its group, which fixes the scale, is not clipped by the scale's own rounding.
Ternary and binary, whose mean scale leaves a third of the weights beyond the last level, clip
nothing, as in BitNet (arXiv 2402.17764).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from octavo.backends.base import ActivationFormat
from octavo.backends.reference.options import activation_rule
from octavo.backends.reference.rounding import round_activations, round_bf16
from octavo.core.errors import FormatError, NumericsError
from octavo.formats.codebooks import named_levels
from octavo.formats.floats import largest
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import Convention, Rounded, resolve_convention, round_groups
from octavo.formats.rtn import encode, tensor_scale
from octavo.train.grids import straight_through

_FRACTION_BITS = {"e4m3": 3, "e5m2": 2}
# A level times its step is off by at most 2^-17 steps (8-bit codes in fp32): well under this.
_ROUNDING = 1 + 2**-10


def check_trainable(format: NumberFormat) -> None:
    """Raises FormatError for a format without a straight-through rule."""
    if format.run > 1:
        raise FormatError(
            f"{format} has no straight-through rule: its codes are searched a run at a time; train "
            "in int2_g64 or another integer format"
        )
    if format.variant == "learned":
        raise FormatError(
            f"{format} has no straight-through rule: its levels are fitted to the weights, which "
            "move with every step of training; train in nf4_g64 or an integer format"
        )


def fake_quantize_weight(
    weight: Tensor, format: NumberFormat, convention: Convention | None = None
) -> Tensor:
    """float32 [out, in]: `convert_weight(weight, ...).dequantize()` with a gradient.

    Raises FormatError when the format has no rule, the shape doesn't fit or a scale overflows its
    type, and NumericsError when the weight is not finite.
    """
    check_trainable(format)
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    rule = resolve_convention(format, convention)
    grouped = weight.detach().reshape(format.groups(shape))
    factor = tensor_scale(grouped, format, rule, torch)
    rounded = round_groups(grouped, format, rule, factor, torch)
    _check_finite(weight, rounded.values, format)
    inside = _inside(grouped, rounded, format, factor)
    if inside is not None:
        inside = inside.reshape(shape)
    return straight_through(weight, rounded.values.reshape(shape), inside)


def convert_weight(
    weight: Tensor, format: NumberFormat, convention: Convention | None = None
) -> QuantizedTensor:
    """What is stored and served. Raises as `octavo.formats.rtn.encode`."""
    return encode(weight.detach().float().cpu().numpy(), format, convention)


def fake_quantize_activations(
    x: Tensor, weight: NumberFormat, activations: ActivationFormat = "auto"
) -> Tensor:
    """float32 [..., in] as the kernel of a weight in this format sees it (docs/numerics.md).

    a8 takes the scale from the largest magnitude, so nothing is clipped. Raises UnsupportedError
    when a8 is asked of weights that no integer product takes.
    """
    return round_activations(x, activation_rule(weight, x.shape[-1], activations))


def fake_quantize_kv(x: Tensor) -> Tensor:
    """Keys or values as a bf16 cache returns them."""
    return round_bf16(x)


def _check_finite(weight: Tensor, values: Tensor, format: NumberFormat) -> None:
    if torch.isfinite(values).all():
        return
    if not torch.isfinite(weight).all():
        raise NumericsError(f"a weight to be rounded to {format} is not finite")
    raise FormatError(f"scales exceed the range of {format}; use _sbf16 or _sfp32 scales")


def _inside(
    grouped: Tensor, rounded: Rounded, format: NumberFormat, factor: float
) -> Tensor | None:
    """bool [rows, groups, n], or None where nothing can be clipped."""
    if format.plain or format.variant in ("ternary", "binary"):
        return None
    step = _step(rounded, factor)
    reach = step * (_widest_gap(format) / 2 * _ROUNDING)
    # a step of zero has lost its group, not clipped it: let the gradient bring it back
    inside: Tensor = ((grouped - rounded.values).abs() <= reach) | (step == 0)
    return inside


def _step(rounded: Rounded, factor: float) -> Tensor:
    """|step| of each group, [rows, groups, 1]."""
    assert rounded.scales is not None
    step: Tensor = rounded.scales
    if rounded.super_scales is not None:
        per_super = step.shape[1] // rounded.super_scales.shape[1]
        step = step * rounded.super_scales.repeat_interleave(per_super, dim=1)
    return step.abs() * factor


def _widest_gap(format: NumberFormat) -> float:
    """Between neighbouring levels, in steps."""
    if format.kind == "int":
        return 1.0
    if format.kind == "float":
        top = largest(format.variant)
        exponent = torch.frexp(torch.tensor(top)).exponent.item() - 1
        return float(2.0 ** (exponent - _FRACTION_BITS[format.variant]))
    return max(float(above - below) for below, above in pairwise(named_levels(format)))
