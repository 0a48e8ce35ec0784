"""Round-to-nearest arithmetic of integers, codebooks and small floats, over the array API.

Every step below is one fp32 operation, `fl(...)`; `rint` rounds half to even. A group is the set of
weights that share a scale; lo and hi are its smallest and largest weight, lo0 = min(lo, 0),
hi0 = max(hi, 0), A = max |w|, P = lo if -lo >= hi else hi (the weight of largest magnitude, the
negative one of a tie), b the bits.

1. The ideal step s and, with real offsets, the offset m (`Convention`, methods.md section 1):

   absmax   (a)  s = fl(A / (2^(b-1) - 1))             codes -(2^(b-1) - 1) .. 2^(b-1) - 1
   full     (b)  s = fl(fl(2 * A) / (2^b - 1))         codes -2^(b-1) .. 2^(b-1) - 1
   signed   (c)  s = fl(P / -2^(b-1)), may be < 0      codes -2^(b-1) .. 2^(b-1) - 1
   no_clip  (d)  s = max(fl(-lo0 / 2^(b-1)), fl(hi0 / (2^(b-1) - 1)))       likewise
   minmax        integer zero: s = fl(fl(hi0 - lo0) / (2^b - 1))            codes 0 .. 2^b - 1
                 real offset:  s = fl(fl(hi - lo) / (2^b - 1)), m = lo (lo0 with two levels)
   mse           "signed" or "minmax" with lo and hi times p = fl(1 - i / 100), i = 0 .. 79: the
                 first p with the least sum of squared errors (`tree_sum`) in each group
   codebooks     absmax: s = fl(A / max |level|); signed: s = fl(P / the level of largest magnitude)
   8-bit floats  absmax: s = fl(A / largest)
   ternary and binary   s = fl(tree_sum(|w|) / n)
   trellis       rms: s = fl(sqrt(fl(tree_sum(fl(w * w)) / n)) / 43)

2. As stored: s is rounded to the scale type (half to even; e8m0: up), m likewise; a zero of either
   sign becomes +0. Two levels: S = fp16(fl(max |s| / M)) over the super-group with M the largest
   sub-scale, sub = clip(rint(fl(s / S))), s = fl(S * sub); likewise -m, never negative. With a
   tensor scale t != 1: s and m are first divided by t, rounded, and multiplied by t again.

3. Zero point: z = clip(rint(fl(-lo0 / s)), 0, 2^b - 1); symmetric: z = 2^(b-1).
4. Codes: q = clip(rint(fl(w / s)) + z), or clip(rint(fl(fl(w - m) / s))) with a real offset; where
   s is 0, w / s counts as 0. Codebooks: the nearest level of fl(w / s), thresholds being
   fl32((level + next) / 2), a tie going to the lower level. Binary: 1 where w >= 0. A trellis: a
   path near the run (trellis.py).
5. Values: fl(fl(s * (q - z)) + m).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from octavo.core.errors import FormatError
from octavo.formats import trellis
from octavo.formats.codebooks import named_levels
from octavo.formats.floats import Array, largest, round_float
from octavo.formats.number_format import NumberFormat

Convention = Literal["absmax", "full", "signed", "no_clip", "minmax", "mse", "mean", "rms"]

_MSE_STEPS = 80  # p = 1, 0.99, ... 0.21, as GPTQ searches


class Rounded(NamedTuple):
    """What rounding makes of `groups` of weights, [rows, groups, n]. All float32 arrays of xp."""

    codes: Array  # [rows, groups, n], unsigned integers; for floats the rounded values
    values: Array  # [rows, groups, n], dequantized
    scales: Array | None  # [rows, groups, 1], as stored (sub-scales when two-level)
    zeros: Array | None  # [rows, groups, 1]: integer zeros, offsets, or sub-offsets
    super_scales: Array | None  # [rows, supers, 1]
    super_zeros: Array | None


class _Grid(NamedTuple):
    """Steps and offsets, [rows, groups, 1]: as they dequantize, and as they are stored."""

    step: Array
    offset: Array | None
    scales: Array
    zeros: Array | None
    super_scales: Array | None
    super_zeros: Array | None


def conventions_of(format: NumberFormat) -> tuple[Convention, ...]:
    """The conventions that apply to a format, the default first (docs/formats.md says why)."""
    if format.variant in ("ternary", "binary"):
        return ("mean",)
    if format.variant == trellis.VARIANT:
        return ("rms",)
    if format.kind == "float" or format.variant == "nf4":
        return ("absmax",)
    if format.zero != "none":
        return ("minmax", "mse")
    if format.kind == "int" and not _scale_may_be_negative(format):
        return ("absmax", "full", "no_clip")
    if format.kind == "codebook":
        return ("signed", "absmax") if _scale_may_be_negative(format) else ("absmax",)
    if format.bits == 8:
        return ("absmax", "signed", "full", "no_clip", "mse")
    return ("signed", "absmax", "full", "no_clip", "mse")


def resolve_convention(format: NumberFormat, convention: Convention | None) -> Convention:
    """The default when None. Raises FormatError for one that doesn't apply to the format."""
    known = conventions_of(format)
    if convention is None:
        return known[0]
    if convention not in known:
        raise FormatError(
            f"{format} can't be rounded with convention {convention!r}; it takes {', '.join(known)}"
        )
    return convention


def round_groups(
    w: Array, format: NumberFormat, convention: Convention, tensor_scale: float, xp: Any
) -> Rounded:
    """Round float32 [rows, groups, n]; a row of it is a row of the weight (or all, per tensor)."""
    if format.plain:
        values = round_float(w, format.variant, xp)
        return Rounded(values, values, None, None, None, None)
    shrink = _best_shrink(w, format, tensor_scale, xp) if convention == "mse" else None
    grid = _grid(w, format, convention, shrink, tensor_scale, xp)
    return _on_grid(w, grid, format, convention, xp)


def scale_groups(
    w: Array, format: NumberFormat, convention: Convention, tensor_scale: float, xp: Any
) -> Rounded:
    """The scales that `round_groups` would choose, without clip search, and codes of 0."""
    nothing = xp.zeros_like(w)
    grid = _grid(w, format, convention, None, tensor_scale, xp)
    return Rounded(nothing, nothing, *grid[2:])


def ideal_step(w: Array, format: NumberFormat, convention: Convention, xp: Any) -> Array:
    """Step 1 above without clip search: float32 [rows, groups, 1]."""
    return _ideal(w, format, convention, None, xp)[0]


def tree_sum(x: Array, xp: Any) -> Array:
    """Sum over the last axis (kept) in one order whatever the library: halves onto halves."""
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        pairs = x.shape[-1] - half
        middle = x[..., pairs:half]
        x = xp.concatenate([x[..., :pairs] + x[..., half:], middle], axis=-1)
    return x


def _scale_may_be_negative(format: NumberFormat) -> bool:
    if format.super_scale:
        return format.super_scale.signed
    return format.scale != "e8m0"


def _best_shrink(w: Array, format: NumberFormat, tensor_scale: float, xp: Any) -> Array:
    base: Convention = "signed" if format.zero == "none" else "minmax"
    best = least = None
    for i in range(_MSE_STEPS):
        p = xp.full_like(w[..., :1], 1 - i / 100)
        grid = _grid(w, format, base, p, tensor_scale, xp)
        error = _on_grid(w, grid, format, base, xp).values - w
        total = tree_sum(error * error, xp)
        if least is None:
            best, least = p, total
            continue
        best = xp.where(total < least, p, best)
        least = xp.minimum(total, least)
    return best


def _grid(
    w: Array,
    format: NumberFormat,
    convention: Convention,
    shrink: Array | None,
    tensor_scale: float,
    xp: Any,
) -> _Grid:
    step, offset = _ideal(w, format, convention, shrink, xp)
    step = _over(step, tensor_scale, xp)
    if format.super_scale:
        return _two_levels(step, _over(offset, tensor_scale, xp), format, tensor_scale, xp)
    scales = _positive_zero(round_float(step, format.scale, xp), xp)
    if format.zero != "real":
        step = scales * tensor_scale
        zeros = _zero_points(w, step, format, shrink, xp) if format.zero == "int" else None
        return _Grid(step, None, scales, zeros, None, None)
    zeros = _positive_zero(round_float(_over(offset, tensor_scale, xp), format.scale, xp), xp)
    return _Grid(scales * tensor_scale, zeros * tensor_scale, scales, zeros, None, None)


def _over(x: Array | None, tensor_scale: float, xp: Any) -> Array | None:
    if x is None or tensor_scale == 1.0:
        return x
    return _divide(x, tensor_scale, xp)


def _ideal(
    w: Array, format: NumberFormat, convention: Convention, shrink: Array | None, xp: Any
) -> tuple[Array, Array | None]:
    if convention == "mean":
        return _divide(tree_sum(xp.abs(w), xp), w.shape[-1], xp), None
    if convention == "rms":
        square = _divide(tree_sum(w * w, xp), w.shape[-1], xp)
        return _divide(xp.sqrt(square), trellis.SPREAD, xp), None
    lo, hi = _extremes(w, shrink, xp)
    if format.kind != "int":
        return _level_step(lo, hi, format, convention, xp), None
    if format.zero == "none":
        return _symmetric_step(lo, hi, format.bits, convention, xp), None
    if format.zero == "int" or format.super_scale:  # two-level offsets can't be positive
        lo, hi = xp.clip(lo, None, 0.0), xp.clip(hi, 0.0, None)
    return _divide(hi - lo, 2**format.bits - 1, xp), lo


def _extremes(w: Array, shrink: Array | None, xp: Any) -> tuple[Array, Array]:
    lo = xp.amin(w, axis=-1, keepdims=True)
    hi = xp.amax(w, axis=-1, keepdims=True)
    return (lo, hi) if shrink is None else (lo * shrink, hi * shrink)


def _symmetric_step(lo: Array, hi: Array, bits: int, convention: Convention, xp: Any) -> Array:
    half = 2 ** (bits - 1)
    match convention:
        case "absmax":
            return _divide(xp.maximum(-lo, hi), half - 1, xp)
        case "full":
            return _divide(xp.maximum(-lo, hi) * 2.0, 2 * half - 1, xp)
        case "no_clip":
            below = _divide(-xp.clip(lo, None, 0.0), half, xp)
            return xp.maximum(below, _divide(xp.clip(hi, 0.0, None), half - 1, xp))
        case _:
            return _divide(_peak(lo, hi, xp), -half, xp)


def _level_step(
    lo: Array, hi: Array, format: NumberFormat, convention: Convention, xp: Any
) -> Array:
    if format.kind == "float":
        return _divide(xp.maximum(-lo, hi), largest(format.variant), xp)
    levels = named_levels(format)
    extreme = float(levels[0] if -levels[0] >= levels[-1] else levels[-1])
    if convention == "signed":
        return _divide(_peak(lo, hi, xp), extreme, xp)
    return _divide(xp.maximum(-lo, hi), abs(extreme), xp)


def _peak(lo: Array, hi: Array, xp: Any) -> Array:
    return xp.where(-lo >= hi, lo, hi)


def _divide(x: Array, by: float, xp: Any) -> Array:
    # by an array, for a library may turn a division by a number into a product (torch on CUDA)
    return x / xp.full_like(x, by)


def _positive_zero(x: Array, xp: Any) -> Array:
    return xp.where(x == 0, xp.zeros_like(x), x)


def _zero_points(w: Array, step: Array, format: NumberFormat, shrink: Array | None, xp: Any) -> Any:
    lo = xp.clip(_extremes(w, shrink, xp)[0], None, 0.0)
    return xp.clip(xp.round(_ratio(-lo, step, xp)), 0, 2**format.bits - 1)


def _ratio(x: Array, step: Array, xp: Any) -> Array:
    nothing = step == 0
    return xp.where(nothing, xp.zeros_like(x), x / xp.where(nothing, xp.ones_like(step), step))


def _two_levels(
    step: Array, offset: Array | None, format: NumberFormat, tensor_scale: float, xp: Any
) -> _Grid:
    top = format.super_scale
    assert top is not None
    largest_sub = 2 ** (top.bits - 1) - 1 if top.signed else 2**top.bits - 1
    smallest_sub = -(2 ** (top.bits - 1)) if top.signed else 0
    sub, over, step = _sub_scales(step, format, (smallest_sub, largest_sub), xp)
    if offset is None:
        return _Grid(step * tensor_scale, None, sub, None, over, None)
    sub_min, over_min, offset = _sub_scales(-offset, format, (0, largest_sub), xp)
    return _Grid(step * tensor_scale, -offset * tensor_scale, sub, sub_min, over, over_min)


def _sub_scales(
    x: Array, format: NumberFormat, limits: tuple[int, int], xp: Any
) -> tuple[Array, Array, Array]:
    top, size = format.super_scale, getattr(format.granularity, "size", 1)
    assert top is not None
    wide = xp.reshape(x, (x.shape[0], -1, top.group // size))
    peak = xp.amax(xp.abs(wide), axis=-1, keepdims=True)
    over = _positive_zero(round_float(_divide(peak, limits[1], xp), "fp16", xp), xp)
    sub = xp.clip(xp.round(_ratio(wide, over, xp)), limits[0], limits[1])
    sub = _positive_zero(sub, xp)
    return xp.reshape(sub, x.shape), over, xp.reshape(over * sub, x.shape)


def _on_grid(
    w: Array, grid: _Grid, format: NumberFormat, convention: Convention, xp: Any
) -> Rounded:
    codes, values = _codes(w, grid, format, convention, xp)
    if grid.offset is not None:
        values = values + grid.offset
    return Rounded(codes, values, *grid[2:])


def _codes(
    w: Array, grid: _Grid, format: NumberFormat, convention: Convention, xp: Any
) -> tuple[Array, Array]:
    """Codes as stored, and fl(s * (q - z))."""
    if format.variant == "binary":
        bit = xp.where(w >= 0, xp.ones_like(w), xp.zeros_like(w))
        return bit, grid.step * (bit * 2.0 - 1.0)
    shifted = w if grid.offset is None else w - grid.offset
    ratio = _ratio(shifted, grid.step, xp)
    if format.kind == "float":
        rounded = round_float(ratio, format.variant, xp)
        return rounded, grid.step * rounded
    if format.variant == trellis.VARIANT:
        return _nearest_path(ratio, grid.step, xp)
    if format.kind == "codebook":
        return _nearest_level(ratio, grid.step, format, xp)
    zero, low, high = _code_range(format, convention)
    if grid.offset is None and grid.zeros is not None:
        zero = grid.zeros
    codes = xp.clip(xp.round(ratio) + zero, low, high)
    return codes, grid.step * (codes - zero)


def _code_range(format: NumberFormat, convention: Convention) -> tuple[int, int, int]:
    """The code of 0, and the smallest and largest code in use."""
    half, last = 2 ** (format.bits - 1), 2**format.bits - 1
    if format.zero != "none":
        return 0, 0, last
    if format.variant == "ternary":
        return half, half - 1, half + 1
    return half, 1 if convention == "absmax" else 0, last


def _nearest_level(ratio: Array, step: Array, format: NumberFormat, xp: Any) -> tuple[Array, Array]:
    levels = named_levels(format)
    codes, chosen = xp.zeros_like(ratio), xp.full_like(ratio, float(levels[0]))
    for below, level in pairwise(levels):
        above = ratio > float((below + level) / 2)
        codes = codes + xp.where(above, xp.ones_like(ratio), xp.zeros_like(ratio))
        chosen = xp.where(above, xp.full_like(ratio, float(level)), chosen)
    return codes, step * chosen


def _nearest_path(ratio: Array, step: Array, xp: Any) -> tuple[Array, Array]:
    runs = xp.reshape(ratio, (-1, trellis.RUN))
    windows = xp.reshape(trellis.nearest(runs, xp), ratio.shape)
    chosen = xp.asarray(np.array(trellis.levels()))[windows]
    return xp.asarray(windows & 3, dtype=ratio.dtype), step * chosen
