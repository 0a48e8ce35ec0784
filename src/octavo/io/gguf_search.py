"""Encoders of GGUF's block types that search for scales: least squared error, weighted if asked.

For every sub-block a row of scales near the range's own is tried, each followed by the optimum of
least squares for the codes that it gives (the idea of ggml's make_qx_quants and make_qkx2_quants).
Where scales have two levels, sub-scales, codes and the super-scale are then improved in turn, on
the values as they will be decoded, and the best state of each block is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError
from octavo.formats.codebooks import iq4nl_levels
from octavo.io.gguf_fields import Fields, join
from octavo.io.mapping import U8
from octavo.io.stored import BLOCK_TYPES

F32 = npt.NDArray[np.float32]

_AT_ONCE = 1 << 16  # weights: temporaries stay in the cache
_ROUNDS = 4
_STEPS = tuple(round(-0.8 + 0.2 * i, 1) for i in range(9))  # of a grid's edge, in codes
_CROSS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True, slots=True)
class Shape:
    """What a type's blocks hold.

    groups    sub-blocks, each with a scale;  bits: of a code;  sub: the range of integer sub-scales
              (0, 0 where the fp16 scale stands alone);  offset: whether there are offsets
    codebook  codes are IQ4_NL's levels
    """

    groups: int
    bits: int
    sub: tuple[int, int] = (0, 0)
    offset: bool = False
    codebook: bool = False

    @property
    def low(self) -> int:
        """The least value. Q8_0 is never -128, as ggml's own isn't: its kernels count on that."""
        return 0 if self.offset else -(1 << (self.bits - 1)) + (self.bits == 8)

    @property
    def high(self) -> int:
        """The greatest value."""
        return (1 << self.bits) - 1 if self.offset else (1 << (self.bits - 1)) - 1


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "Q4_0": Shape(1, 4),
        "Q4_1": Shape(1, 4, offset=True),
        "Q5_0": Shape(1, 5),
        "Q5_1": Shape(1, 5, offset=True),
        "Q8_0": Shape(1, 8),
        "IQ4_NL": Shape(1, 4, codebook=True),
        "Q2_K": Shape(16, 2, (0, 15), offset=True),
        "Q3_K": Shape(16, 3, (-32, 31)),
        "Q4_K": Shape(8, 4, (0, 63), offset=True),
        "Q5_K": Shape(8, 5, (0, 63), offset=True),
        "Q6_K": Shape(16, 6, (-128, 127)),
    }
)


@cache
def _iq4_nearest() -> F32:
    """The nearest level of every half: the middles between levels are multiples of a half."""
    levels = iq4nl_levels()
    middles = (levels[1:] + levels[:-1]) / 2
    return levels[np.searchsorted(middles, np.arange(-255, 256) / 2 + 0.25)]


@dataclass(frozen=True, slots=True)
class Found:
    """n blocks as they will be stored. `values` are what scales multiply, float32 [n, groups, k];
    `scales` and `mins` [n, groups] integers (ones without two levels); `tops`, `floors` fp16 [n]:
    w = top * scale * value - floor * min. `error` float32 [n]."""

    values: F32
    scales: F32
    mins: F32
    tops: F32
    floors: F32
    error: F32


def search(type_name: str, weight: F32, importance: F32 | None = None) -> U8:
    """float32 [rows, k] -> uint8 [rows, row_bytes].

    `importance` float32 [k] weighs the squared error of each input (a diagonal of E[x x^T]; all
    finite, none negative); None counts all alike. Raises FormatError for weights that aren't
    finite or beyond fp16 scales, rows that aren't whole blocks, types that aren't searched for.
    """
    if type_name not in SHAPES:
        raise FormatError(f"{type_name} can't be encoded; encoded are {', '.join(SHAPES)}.")
    elements = BLOCK_TYPES[type_name].elements
    if weight.shape[1] % elements:
        raise FormatError(
            f"{type_name} needs rows of a multiple of {elements} elements, not {weight.shape[1]}."
        )
    if not np.isfinite(weight).all():
        raise FormatError(f"a weight is infinite or not a number, which {type_name} can't hold")
    shape = SHAPES[type_name]
    weigh = _weights(weight.shape[1], importance)
    step = max(1, _AT_ONCE // weight.shape[1])
    chunks = [
        _encode(type_name, shape, weight[start : start + step], weigh, elements)
        for start in range(0, weight.shape[0], step)
    ]
    return np.concatenate(chunks)


def _weights(width: int, importance: F32 | None) -> F32:
    if importance is None:
        return np.ones(width, np.float32)
    if importance.shape != (width,) or not np.isfinite(importance).all() or importance.min() < 0:
        raise FormatError(f"importance must be {width} finite numbers, none negative")
    top = importance.max()
    # An input that never spoke is still to be stored somehow; 1 is the mean of the others' scale.
    scaled = importance / top if top > 0 else np.ones(width)
    return np.maximum(scaled, 1e-6).astype(np.float32)


def _encode(type_name: str, shape: Shape, rows: F32, weigh: F32, elements: int) -> U8:
    count = rows.shape[0]
    x = np.ascontiguousarray(rows, np.float32).reshape(-1, shape.groups, elements // shape.groups)
    w = np.broadcast_to(weigh, rows.shape).reshape(x.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        found = _best(shape, x, w)
    if not np.isfinite(found.tops).all() or not np.isfinite(found.floors).all():
        raise FormatError("a value is beyond the range of float16. Keep it in F32 or BF16.")
    # Q4_1 and Q5_1 add their offset, the others subtract it.
    floors = found.floors if shape.sub != (0, 0) else -found.floors
    fields = Fields(
        _codes(shape, found.values).reshape(len(x), -1), found.scales, found.mins,
        found.tops.astype(np.float16), floors.astype(np.float16),
    )  # fmt: skip
    data: U8 = join(type_name, fields).reshape(count, -1)
    return data


def _codes(shape: Shape, values: F32) -> U8:
    if shape.codebook:
        return np.searchsorted(iq4nl_levels(), values).astype(np.uint8)
    zero = 0 if shape.offset else 1 << (shape.bits - 1)
    codes: U8 = (values + np.float32(zero)).astype(np.uint8)
    return codes


def _best(shape: Shape, x: F32, w: F32) -> Found:
    steps, mins = _offset_fit(shape, x, w) if shape.offset else (_scale_fit(shape, x, w), None)
    best: Found | None = None
    for start in _starts(shape, x, steps, mins):
        found = _settled(shape, x, w, start, steps, mins)
        best = found if best is None else _better(best, found)
    assert best is not None
    return best


def _nearest(shape: Shape, scaled: F32) -> F32:
    """The value of the nearest code."""
    if shape.codebook:
        return _iq4_nearest()[np.clip(np.floor(scaled * 2), -255, 255).astype(np.int16) + 255]
    rounded: F32 = np.clip(np.rint(scaled), shape.low, shape.high)
    return rounded


def _ratio(over: F32, under: F32) -> F32:
    """over / under; 0 where under is 0 or the quotient is no number."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = over / under
    found: F32 = np.where(np.isfinite(quotient), quotient, np.float32(0))
    return found


def _scale_fit(shape: Shape, x: F32, w: F32) -> F32:
    """[n, groups]: the scale of least error of each sub-block by itself."""
    at = np.abs(x).argmax(-1)[..., None]
    extreme = np.take_along_axis(x, at, -1)
    best = np.zeros(x.shape[:-1], np.float32)
    gain = np.full(x.shape[:-1], -1, np.float32)
    wx = w * x
    for edge in _edges(shape):
        values = _nearest(shape, x * _ratio(np.float32(edge), extreme))
        for _ in range(2):
            over, under = (wx * values).sum(-1), (w * values * values).sum(-1)
            scale = _ratio(over, under)
            better = over * scale > gain
            best, gain = np.where(better, scale, best), np.where(better, over * scale, gain)
            values = _nearest(shape, x * _ratio(np.float32(1), scale)[..., None])
    return best


def _edges(shape: Shape) -> Iterator[float]:
    """Which value the weight of largest magnitude is put on: around both ends of the grid."""
    if shape.codebook:
        yield from (side + 8 * step for side in (-127, 113) for step in _STEPS)
        return
    steps = _STEPS if shape.bits < 8 else _STEPS[::2]
    yield from (shape.low - step for step in steps)
    yield from (shape.high + step for step in steps)


def _offset_fit(shape: Shape, x: F32, w: F32) -> tuple[F32, F32]:
    """[n, groups] twice: scale and offset (subtracted; not negative under two levels) of least
    error of each sub-block by itself."""
    bounded = shape.sub != (0, 0)
    low = x.min(-1, keepdims=True)
    low = np.minimum(low, 0) if bounded else low
    reach = x.max(-1, keepdims=True) - low
    top = (1 << shape.bits) - 1
    scales, mins = np.zeros(x.shape[:-1], np.float32), np.zeros(x.shape[:-1], np.float32)
    error = np.full(x.shape[:-1], np.inf, np.float32)
    for step in (-0.5, *_STEPS, 0.0):
        values = _nearest(shape, (x - low) * _ratio(np.float32(top + step), reach))
        scale, floor = _line(x, w, values, bounded)
        for _ in range(2):
            values = _nearest(
                shape, (x + floor[..., None]) * _ratio(np.float32(1), scale)[..., None]
            )
            wrong = x - (scale[..., None] * values - floor[..., None])
            found = (w * wrong * wrong).sum(-1)
            better = found < error
            scales, mins = np.where(better, scale, scales), np.where(better, floor, mins)
            error = np.where(better, found, error)
            scale, floor = _line(x, w, values, bounded)
    return scales, mins


def _line(x: F32, w: F32, values: F32, bounded: bool) -> tuple[F32, F32]:
    """Least squares of x ~ scale * value - floor; a floor below 0 becomes 0 where `bounded`."""
    n, sx, sv = w.sum(-1), (w * x).sum(-1), (w * values).sum(-1)
    svv, sxv = (w * values * values).sum(-1), (w * x * values).sum(-1)
    under = n * svv - sv * sv
    scale = _ratio(n * sxv - sx * sv, under)
    floor = -_ratio(svv * sx - sv * sxv, under)
    flat = scale <= 0  # all codes alike, or a line that runs the wrong way
    scale, floor = np.where(flat, 0, scale), np.where(flat, -_ratio(sx, n), floor)
    if bounded:
        below = floor < 0
        scale = np.where(below, np.maximum(_ratio(sxv, svv), 0), scale)
        floor = np.where(below, np.float32(0), floor)
    return scale.astype(np.float32), floor.astype(np.float32)


def _starts(shape: Shape, x: F32, steps: F32, mins: F32 | None) -> Iterator[tuple[F32, F32]]:
    """First super-scales, [n] each: the largest sub-scale lands on an end of its range. Of one
    level: the best fit, and ggml's plain rule, which fp16 may happen to suit better."""
    zero = np.zeros(len(steps), np.float32)
    if shape.sub == (0, 0):
        yield steps[:, 0], zero if mins is None else mins[:, 0]
        yield from _plain_starts(shape, x[:, 0], zero)
        return
    low, high = shape.sub
    extreme = np.take_along_axis(steps, np.abs(steps).argmax(1)[:, None], 1)[:, 0]
    floors = zero if mins is None else mins.max(1) / np.float32(high)
    yield extreme / np.float32(high), floors
    if low < 0:
        yield extreme / np.float32(low), floors


def _plain_starts(shape: Shape, x: F32, zero: F32) -> Iterator[tuple[F32, F32]]:
    low, high = x.min(1), x.max(1)
    if shape.offset:
        yield (high - low) / np.float32(shape.high), -low
        return
    extreme = np.where(-low >= high, low, high)
    ends = (-127, 113) if shape.codebook else (shape.low, shape.high)
    for end in ends:
        yield extreme / np.float32(end), zero


def _settled(
    shape: Shape, x: F32, w: F32, start: tuple[F32, F32], steps: F32, mins: F32 | None
) -> Found:
    """Improve sub-scales and codes, then super-scales, in turn."""
    tops, floors = start
    best: Found | None = None
    for _ in range(_ROUNDS):
        tops, floors = _stored(tops), _stored(floors)
        found = _assigned(shape, x, w, tops, floors, steps, mins)
        best = found if best is None else _better(best, found)
        tops, floors = _super_fit(shape, x, w, found)
        if mins is None:
            steps = _ratio((w * x * found.values).sum(-1), (w * found.values**2).sum(-1))
        elif shape.sub != (0, 0):
            steps, mins = _line(x, w, found.values, True)
    assert best is not None
    return best


def _stored(values: F32) -> F32:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _assigned(
    shape: Shape, x: F32, w: F32, tops: F32, floors: F32, steps: F32, mins: F32 | None
) -> Found:
    """The best sub-scales near the ideal ones under these super-scales, and the codes."""
    ones = np.ones(steps.shape, np.float32)
    if shape.sub == (0, 0):
        return _evaluated(shape, x, w, Found(x, ones, ones, tops, floors, tops))
    low, high = shape.sub
    ideal = np.rint(_ratio(steps, tops[:, None]))
    ideal_min = ones * 0 if mins is None else np.rint(_ratio(mins, floors[:, None]))
    best: Found | None = None
    wrong = np.full(steps.shape, np.inf, np.float32)
    for scale, floor in _CROSS if mins is not None else _CROSS[:3]:
        scales = np.clip(ideal + np.float32(scale), low, high)
        lows = np.clip(ideal_min + np.float32(floor), 0, high) if mins is not None else ideal_min
        values, error = _rounded(shape, x, w, scales * tops[:, None], lows * floors[:, None])
        if best is None:
            best = Found(values, scales, lows, tops, floors, tops)
            wrong = error
            continue
        better = error < wrong
        best = replace(
            best,
            values=np.where(better[..., None], values, best.values),
            scales=np.where(better, scales, best.scales),
            mins=np.where(better, lows, best.mins),
        )
        wrong = np.where(better, error, wrong)
    assert best is not None
    return replace(best, error=wrong.sum(-1))


def _evaluated(shape: Shape, x: F32, w: F32, found: Found) -> Found:
    step = found.scales * found.tops[:, None]
    values, error = _rounded(shape, x, w, step, found.mins * found.floors[:, None])
    return replace(found, values=values, error=error.sum(-1))


def _rounded(shape: Shape, x: F32, w: F32, step: F32, floor: F32) -> tuple[F32, F32]:
    """Codes' values [n, groups, k] under real scales and offsets, and the error [n, groups]."""
    values = _nearest(shape, (x + floor[..., None]) * _ratio(np.float32(1), step)[..., None])
    wrong = x - (step[..., None] * values - floor[..., None])
    return values, (w * wrong * wrong).sum(-1)


def _super_fit(shape: Shape, x: F32, w: F32, found: Found) -> tuple[F32, F32]:
    """Least squares of the super-scales, codes and sub-scales given."""
    a = found.scales[..., None] * found.values
    saa, sxa = _total(w * a * a), _total(w * x * a)
    if not shape.offset:
        return _ratio(sxa, saa), found.floors
    b = np.broadcast_to(found.mins[..., None], x.shape)
    sab, sbb, sxb = _total(w * a * b), _total(w * b * b), _total(w * x * b)
    under = saa * sbb - sab * sab
    tops, floors = _ratio(sxa * sbb - sxb * sab, under), _ratio(sxa * sab - sxb * saa, under)
    bounded = shape.sub != (0, 0)
    bad = (tops <= 0) | ((floors < 0) if bounded else False)
    return np.where(bad, found.tops, tops), np.where(bad, found.floors, floors)


def _total(values: F32) -> F32:
    total: F32 = values.sum(axis=(1, 2))
    return total


def _better(one: Found, other: Found) -> Found:
    """Block by block the one of less error."""
    pick = other.error < one.error
    per_group, per_value = pick[:, None], pick[:, None, None]
    return Found(
        np.where(per_value, other.values, one.values),
        np.where(per_group, other.scales, one.scales),
        np.where(per_group, other.mins, one.mins),
        np.where(pick, other.tops, one.tops),
        np.where(pick, other.floors, one.floors),
        np.where(pick, other.error, one.error),
    )
