"""A hypothesis strategy over every valid NumberFormat, and weights that suit one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from octavo.formats.granularity import (
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
)
from octavo.formats.number_format import (
    FLOAT_BITS,
    Kind,
    NumberFormat,
    ScaleType,
    SuperScale,
    Zero,
)

REAL_SCALES: tuple[ScaleType, ...] = ("fp16", "bf16", "fp32")
SCALES: tuple[ScaleType, ...] = (*REAL_SCALES, "e4m3", "e8m0")


def normal_weight(
    shape: tuple[int, int], seed: int = 0, scale: float = 0.05
) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def granularities(max_group: int = 9_999_999) -> st.SearchStrategy[Granularity]:
    fixed = st.sampled_from([PerTensor(), PerChannel(), PerToken()])
    return fixed | st.integers(1, max_group).map(PerGroup)


@st.composite
def _elements(draw: st.DrawFn) -> tuple[Kind, int, str]:
    fixed: list[tuple[Kind, int, str]] = [
        ("float", 8, "e4m3"),
        ("float", 8, "e5m2"),
        ("int", 2, "ternary"),
        ("int", 1, "binary"),
        ("codebook", 4, "nf4"),
        ("codebook", 4, "iq4nl"),
        ("codebook", 2, "trellis2"),
    ]
    learned = st.integers(1, 8).map(lambda bits: ("codebook", bits, "learned"))
    plain = st.integers(1, 8).map(lambda bits: ("int", bits, ""))
    return draw(st.sampled_from(fixed) | learned | plain)


@st.composite
def _two_level(draw: st.DrawFn) -> NumberFormat:
    kind, bits, variant = draw(_elements().filter(lambda e: e[0] != "float"))
    plain = kind == "int" and not variant
    zero: Zero = draw(st.sampled_from(["none", "real"])) if plain else "none"
    if plain and bits == 1:
        zero = "real"
    group = draw(st.sampled_from([32, 64] if variant == "trellis2" else [8, 16, 32, 64]))
    signed = zero == "none" and draw(st.booleans())
    top = SuperScale(draw(st.integers(2, 8)), signed, group * draw(st.integers(1, 16)))
    return NumberFormat(kind, bits, PerGroup(group), variant, zero, "int", top)


@st.composite
def _one_level(draw: st.DrawFn) -> NumberFormat:
    kind, bits, variant = draw(_elements())
    zeros: list[Zero] = ["none"]
    if kind == "int" and not variant:
        zeros = ["int", "real"] if bits == 1 else ["none", "int", "real"]
    zero = draw(st.sampled_from(zeros))
    scale = draw(st.sampled_from(REAL_SCALES if zero == "real" else SCALES))
    where = draw(granularities())
    if variant == "trellis2" and isinstance(where, PerGroup):
        where = PerGroup(32 * min(where.size, 300_000))  # whole runs
    return NumberFormat(kind, bits, where, variant, zero, scale)


def _plain_floats() -> st.SearchStrategy[NumberFormat]:
    names = st.sampled_from(sorted(FLOAT_BITS))
    return names.map(
        lambda name: NumberFormat("float", FLOAT_BITS[name], variant=name, scale="none")
    )


def number_formats() -> st.SearchStrategy[NumberFormat]:
    """Every valid format."""
    return _plain_floats() | _one_level() | _two_level()
