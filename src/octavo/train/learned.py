"""Learned steps in the formats that are served (LSQ, arXiv 1902.08153; ParetoQ, arXiv 2502.02631).

    integers without zero point   codes -2^(b-1) .. 2^(b-1) - 1; starts at round to nearest (but for
                                  groups so small that their scale would be stored as zero)
    ternary                       codes -1, 0, 1, elastic: three equal cells; starts likewise
    integers with real offsets    elastic: 2^b equal cells around zero, offset -(2^b - 1) / 2 steps;
                                  starts at a range of 2 * mean|w| / sqrt(Q_P)

A step is learned as a factor of its start, so that an optimizer's update is a share of it, and is
rounded to the type that stores it before it is used: forward is `convert_learned(...).dequantize()`
to the last bit. An elastic grid's gradient ends at 0.99 of its range, not at its last level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.core.errors import FormatError
from octavo.formats.floats import round_float, to_storage
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import resolve_convention, round_groups
from octavo.train.grids import IntegerGrid, round_to_grid, scale_gradient, straight_through

SCALES = ("fp16", "bf16", "fp32")
_SMALLEST = 2.0**-24  # fp16's smallest number: a group of zeros keeps a step to grow from
_ELASTIC = 0.99


def check_learnable(format: NumberFormat) -> None:
    """Raises FormatError for a format whose steps can't be learned."""
    plain = format.kind == "int" and format.variant in ("", "ternary")
    if plain and format.zero in ("none", "real") and format.scale in SCALES:
        return
    raise FormatError(
        f"{format} has no learned step: give an integer format without zero points (int3_g64), "
        "with real offsets (int2_g64_offset) or ternary, its scales in fp16, bf16 or fp32, or set "
        "learn_steps to false"
    )


def first_steps(weight: Tensor, format: NumberFormat) -> Tensor:
    """float32 [rows, groups, 1]: where the steps of float32 [out, in] start."""
    check_learnable(format)
    grouped = _grouped(weight.detach(), format)
    if format.zero == "real":
        cells = 2**format.bits
        range_ = 2 * grouped.abs().mean(dim=-1, keepdim=True) / math.sqrt((cells - 1) / cells)
        first: Tensor = range_ * (2 / cells)
        return first
    rounded = round_groups(grouped, format, resolve_convention(format, None), 1.0, torch)
    assert rounded.scales is not None
    steps: Tensor = rounded.scales
    return steps


def learned_weight(weight: Tensor, steps: Tensor, format: NumberFormat) -> Tensor:
    """float32 [out, in] with gradients to weight and steps, the latter times 1 / sqrt(N * Q_P)."""
    grouped, grid = _grouped(weight, format), _grid(format)
    used = scale_gradient(
        straight_through(steps, stored_steps(steps.detach(), format)),
        1 / math.sqrt(grouped.shape[-1] * _top(format)),
    )
    if format.zero != "real":
        return round_to_grid(grouped, used, grid).reshape(weight.shape)
    offset = straight_through(used * -_top(format), _offset(used.detach(), format))
    return (round_to_grid(grouped - offset, used, grid) + offset).reshape(weight.shape)


def convert_learned(weight: Tensor, steps: Tensor, format: NumberFormat) -> QuantizedTensor:
    """What is stored and served: `dequantize()` is `learned_weight`, bit for bit."""
    grouped, grid = _grouped(weight.detach(), format), _grid(format)
    used, zeros = stored_steps(steps.detach(), format), None
    if format.zero == "real":
        offset = _offset(used, format)
        codes = grid.units((grouped - offset) / used)
        zeros = to_storage(offset[..., 0].cpu().numpy(), format.scale)
    else:
        codes = grid.units(grouped / used) + 2 ** (format.bits - 1)
    packed = pack_bits(codes.reshape(weight.shape).to(torch.uint8).cpu().numpy(), format.bits)
    scales = to_storage(used[..., 0].cpu().numpy(), format.scale)
    return QuantizedTensor(format, (weight.shape[0], weight.shape[1]), packed, scales, zeros)


def _grouped(weight: Tensor, format: NumberFormat) -> Tensor:
    return weight.reshape(format.groups((weight.shape[0], weight.shape[1])))


def stored_steps(steps: Tensor, format: NumberFormat) -> Tensor:
    """Steps as the format's scale type holds them, never 0. FormatError beyond its range."""
    rounded: Tensor = round_float(steps, format.scale, torch)
    if not torch.isfinite(rounded).all():
        raise FormatError(f"learned steps exceed the range of {format}; use _sbf16 or _sfp32")
    return torch.where(rounded == 0, torch.full_like(rounded, _SMALLEST), rounded)


def _offset(used: Tensor, format: NumberFormat) -> Tensor:
    """As stored: what puts the middle of the codes at zero."""
    offset: Tensor = round_float(used * -_top(format), format.scale, torch)
    return offset


def _grid(format: NumberFormat) -> IntegerGrid:
    if format.variant == "ternary":
        return IntegerGrid(-1, 1, _ELASTIC * 1.5 - 1)
    if format.zero == "real":
        last = int(2**format.bits - 1)
        return IntegerGrid(0, last, _ELASTIC * (last + 1) / 2 - last / 2)
    return IntegerGrid.signed(format.bits)


def _top(format: NumberFormat) -> float:
    """Q_P, the largest level in steps."""
    if format.zero == "real":
        return float(2**format.bits - 1) / 2
    return _grid(format).top
