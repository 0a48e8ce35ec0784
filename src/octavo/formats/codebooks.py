"""Levels of the codebooks that have a name. Ascending, but for a trellis."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError
from octavo.formats.number_format import NumberFormat
from octavo.formats.trellis import levels as trellis_levels

F32 = npt.NDArray[np.float32]

LARGEST_LEVEL16 = 127 * 256 + 127  # two signed bytes, 256 * high + low, either sign
_EXACT_SHIFTS = 150  # down to the smallest fp32

# The most extreme quantile of NF4 (QLoRA, arXiv 2305.14314, as its authors' code has it).
_NF4_EDGE = 0.9677083

_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def nf4_levels() -> F32:
    """float32 [16]: quantiles of N(0, 1), 8 above an exact 0 and 7 below, over the largest."""
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(_NF4_EDGE, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(_NF4_EDGE, 0.5, 8)[:-1]]
    levels = np.sort(np.array([*above, 0.0, *below]))
    scaled: F32 = (levels / levels[-1]).astype(np.float32)
    return scaled


def iq4nl_levels() -> F32:
    """float32 [16]: the integer table of GGUF's IQ4_NL and IQ4_XS."""
    return np.array(_IQ4_NL, np.float32)


def float8_levels(variant: str) -> F32:
    """float32 [256]: what each byte of an 8-bit float stands for (in the order of the bytes)."""
    from octavo.formats.floats import float_dtype  # ml_dtypes, only where needed

    return np.arange(256, dtype=np.uint8).view(float_dtype(variant)).astype(np.float32)


def level_steps(levels: F32) -> tuple[npt.NDArray[np.int64], float]:
    """Levels as integers of 16 bits times a step, as a8 products take them (docs/numerics.md).

    Exact, with a power of two as the step, where that is possible. Else the step is the largest
    |level| / 32639, and a level is off by at most half of it: 2**-15.99 of the largest.
    """
    wide = levels.astype(np.float64)
    peak = float(np.abs(wide).max(initial=0))
    for shift in range(_EXACT_SHIFTS):
        whole = np.ldexp(wide, shift)
        if np.ldexp(peak, shift) > LARGEST_LEVEL16:
            break
        if np.array_equal(whole, np.rint(whole)):
            return whole.astype(np.int64), 2.0**-shift
    step = float(np.float32(peak / LARGEST_LEVEL16))
    return np.rint(wide / step).astype(np.int64), step


@cache
def named_levels(format: NumberFormat) -> F32:
    """The levels that `format` itself fixes, read-only. Raises FormatError for a learned one."""
    match format.variant:
        case "nf4":
            levels = nf4_levels()
        case "iq4nl":
            levels = iq4nl_levels()
        case "trellis2":
            levels = trellis_levels()
        case "e4m3" | "e5m2":
            levels = float8_levels(format.variant)
        case _:
            raise FormatError(f"{format} has no levels of its own: its codebook is learned")
    levels.flags.writeable = False
    return levels
