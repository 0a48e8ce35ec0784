"""Rounding fp32 values to narrower floats, half to even, over the array API.

`xp` is a namespace such as numpy or torch; arrays are float32 of that namespace. The result is
float32 again, holding only values of the narrower type, the same bits whatever `xp` is.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = Any  # an array of `xp`: the array API has no type of its own


class _Small(NamedTuple):
    """An 8-bit float: fraction bits, exponent of the smallest normal number, largest number."""

    fraction: int
    min_exponent: int
    largest: float


@cache
def float_dtype(variant: str) -> np.dtype[Any]:
    """The numpy (or ml_dtypes) type that stores `variant`, scale types included."""
    import ml_dtypes

    known: dict[str, np.dtype[Any]] = {
        "fp32": np.dtype(np.float32),
        "fp16": np.dtype(np.float16),
        "bf16": np.dtype(ml_dtypes.bfloat16),
        "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
        "e5m2": np.dtype(ml_dtypes.float8_e5m2),
        "e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    }
    return known[variant]


def largest(variant: str) -> float:
    """The largest finite number of a float type."""
    return {
        "fp32": float(np.finfo(np.float32).max),
        "fp16": 65504.0,
        "bf16": float.fromhex("0x1.fep127"),
        "e4m3": _small("e4m3").largest,
        "e5m2": _small("e5m2").largest,
        "e8m0": 2.0**127,
    }[variant]


def round_float(x: Array, variant: str, xp: Any) -> Array:
    """x rounded to `variant`, half to even. What is too large becomes infinite (fp16, bf16) or
    the largest number (8-bit floats). "e8m0" takes the smallest power of two not below x."""
    match variant:
        case "fp32":
            return x
        case "fp16":
            return _round_fp16(x, xp)
        case "bf16":
            return round_bf16(x, xp)
        case "e8m0":
            return _round_up_to_power(x, xp)
        case _:
            return _round_small(x, _small(variant), xp)


def round_bf16(x: Array, xp: Any) -> Array:
    """x rounded to bfloat16, half to even, as float32. NaN stays NaN."""
    bits = x.view(xp.int32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return xp.where(xp.isnan(x), x, (bits & -0x10000).view(xp.float32))


def to_storage(x: npt.NDArray[np.float32], variant: str) -> npt.NDArray[np.generic]:
    """Values that `variant` holds exactly, in its storage type."""
    return x.astype(float_dtype(variant))


def _small(variant: str) -> _Small:
    return {"e4m3": _Small(3, -6, 448.0), "e5m2": _Small(2, -14, 57344.0)}[variant]


def _round_fp16(x: Array, xp: Any) -> Array:
    # numpy warns when a cast overflows, though infinity is the rounding asked for
    inside = xp.abs(x) < 65520.0
    half = xp.asarray(xp.where(inside, x, xp.zeros_like(x)), dtype=xp.float16)
    infinite = xp.copysign(xp.full_like(x, float("inf")), x)
    return xp.where(inside, xp.asarray(half, dtype=xp.float32), xp.where(xp.isnan(x), x, infinite))


def _round_small(x: Array, kind: _Small, xp: Any) -> Array:
    exponent = (x.view(xp.int32) >> 23) & 0xFF
    exponent = xp.clip(exponent, kind.min_exponent + 127, 254)
    step = ((exponent - kind.fraction) << 23).view(xp.float32)  # a power of two: exact
    return xp.clip(xp.round(x / step) * step, -kind.largest, kind.largest)


def _round_up_to_power(x: Array, xp: Any) -> Array:
    bits = (x.view(xp.int32) + 0x7FFFFF) & 0x7F800000
    return xp.clip(bits, 1 << 23, 254 << 23).view(xp.float32)
