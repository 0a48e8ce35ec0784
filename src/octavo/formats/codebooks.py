"""Levels of the codebooks that have a name. Always ascending."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError
from octavo.formats.number_format import NumberFormat

F32 = npt.NDArray[np.float32]

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


@cache
def named_levels(format: NumberFormat) -> F32:
    """The levels that `format` itself fixes, read-only. Raises FormatError for a learned one."""
    match format.variant:
        case "nf4":
            levels = nf4_levels()
        case "iq4nl":
            levels = iq4nl_levels()
        case "e4m3" | "e5m2":
            levels = float8_levels(format.variant)
        case _:
            raise FormatError(f"{format} has no levels of its own: its codebook is learned")
    levels.flags.writeable = False
    return levels
