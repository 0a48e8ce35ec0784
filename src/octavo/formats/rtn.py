"""Round to nearest: the encoder that needs no data. `rounding.py` states its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError
from octavo.formats.codebooks import named_levels
from octavo.formats.floats import Array, largest, to_storage
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import (
    Convention,
    Rounded,
    ideal_step,
    resolve_convention,
    round_groups,
    scale_groups,
)

F32 = npt.NDArray[np.float32]
Parts = dict[str, npt.NDArray[Any]]

_BLOCK_VALUES = 1 << 21  # weights rounded at a time: bounds the temporaries to some 50 MB


def encode(
    weight: F32, format: NumberFormat, convention: Convention | None = None
) -> QuantizedTensor:
    """Encode float32 [out, in]. Convention None: the format's default (docs/formats.md).

    Raises FormatError when the weights are not finite or not a matrix, when the shape doesn't
    split into the format's groups, and when a scale or a plain float overflows its type.
    """
    return _encoded(weight, format, convention, round_groups)


def scales_of(weight: F32, format: NumberFormat) -> QuantizedTensor:
    """What `encode` gives, but with codes of 0: for encoders that choose codes on these scales."""
    return _encoded(weight, format, None, scale_groups)


def _encoded(
    weight: F32,
    format: NumberFormat,
    convention: Convention | None,
    rounded: Callable[[F32, NumberFormat, Convention, float, Any], Rounded],
) -> QuantizedTensor:
    grouped = _grouped(weight, format)
    rule = resolve_convention(format, convention)
    factor = tensor_scale(grouped, format, rule, np)
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is found in the result
        blocks = [
            _stored(rounded(block, format, rule, factor, np), weight.shape[1], format)
            for block in _blocks(grouped)
        ]
    parts = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    _check_overflow(parts, format)
    shape = (weight.shape[0], weight.shape[1])
    own = format.kind == "codebook" and format.run == 1  # a trellis has as many as 256
    codebook = named_levels(format) if own else None
    return QuantizedTensor(format, shape, **parts, codebook=codebook, tensor_scale=factor)


def fake_quantize(
    weight: Array, format: NumberFormat, xp: Any, convention: Convention | None = None
) -> Array:
    """`encode(weight, ...).dequantize()` on an array of `xp` (numpy, torch), bit for bit.

    Weights must be finite; a scale that overflows its type shows as an infinity or NaN.
    """
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    rows, per_row, size = format.groups(shape)
    grouped = xp.reshape(weight, (rows, per_row, size))
    rule = resolve_convention(format, convention)
    factor = tensor_scale(grouped, format, rule, xp)
    return xp.reshape(round_groups(grouped, format, rule, factor, xp).values, shape)


def _grouped(weight: F32, format: NumberFormat) -> F32:
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise FormatError(
            f"weights must be float32 [out, in], not {weight.dtype} {list(weight.shape)}"
        )
    groups = format.groups((weight.shape[0], weight.shape[1]))
    if not np.isfinite(weight).all():
        row, column = np.argwhere(~np.isfinite(weight))[0]
        raise FormatError(
            f"weight [{row}, {column}] is {weight[row, column]}: "
            f"{format} stores finite weights only; repair or exclude this tensor"
        )
    if format.plain and np.abs(weight).max() > largest(format.variant):
        raise _overflow(format)
    return weight.reshape(groups)


def tensor_scale(grouped: Array, format: NumberFormat, rule: Convention, xp: Any) -> float:
    """1, but for e4m3 scales, whose narrow range it centres: the largest scale becomes 448."""
    if format.scale != "e4m3":
        return 1.0
    base: Convention = rule
    if rule == "mse":
        base = "signed" if format.zero == "none" else "minmax"
    peak = xp.amax(xp.abs(ideal_step(grouped, format, base, xp)))
    return float(peak / xp.full_like(peak, largest("e4m3"))) or 1.0


def _blocks(grouped: F32) -> Iterator[F32]:
    rows = max(1, _BLOCK_VALUES // (grouped.shape[1] * grouped.shape[2]))
    for start in range(0, grouped.shape[0], rows):
        yield grouped[start : start + rows]


def _stored(rounded: Rounded, width: int, format: NumberFormat) -> Parts:
    values = rounded.codes.reshape(-1, width)
    if format.kind == "float":
        parts: Parts = {"codes": to_storage(values, format.variant)}
    else:
        parts = {"codes": pack_bits(values.astype(np.uint8), format.bits)}
    stored = {
        "scales": _stored_scales(rounded.scales, format),
        "zeros": _stored_zeros(rounded.zeros, format),
        "super_scales": _as_type(rounded.super_scales, np.float16),
        "super_zeros": _as_type(rounded.super_zeros, np.float16),
    }
    return parts | {name: part[..., 0] for name, part in stored.items() if part is not None}


def _stored_scales(scales: F32 | None, format: NumberFormat) -> npt.NDArray[Any] | None:
    if scales is None:
        return None
    if format.super_scale:
        return _as_type(scales, np.int8 if format.super_scale.signed else np.uint8)
    return to_storage(scales, format.scale)


def _stored_zeros(zeros: F32 | None, format: NumberFormat) -> npt.NDArray[Any] | None:
    if zeros is None or (format.zero == "real" and not format.super_scale):
        return _stored_scales(zeros, format)
    return _as_type(zeros, np.uint8)


def _as_type(x: F32 | None, dtype: type[np.generic]) -> npt.NDArray[Any] | None:
    return None if x is None else x.astype(dtype)


def _check_overflow(parts: Parts, format: NumberFormat) -> None:
    for name, part in parts.items():
        if part.dtype.kind in "iu" or np.isfinite(part.astype(np.float32)).all():
            continue
        if name == "codes":
            raise _overflow(format)
        raise FormatError(f"{name} exceed the range of {format}; use _sbf16 or _sfp32 scales")


def _overflow(format: NumberFormat) -> FormatError:
    return FormatError(
        f"a weight exceeds {largest(format.variant):g}, the largest of {format}; use bf16 or fp32"
    )
