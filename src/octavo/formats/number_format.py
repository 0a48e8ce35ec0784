"""`NumberFormat`: how a value is stored. Data only, compared by value; knows no kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.formats.granularity import Granularity, PerTensor

Kind = Literal["float", "int", "codebook"]
Zero = Literal["none", "int", "real"]
ScaleType = Literal["none", "fp16", "bf16", "fp32", "e4m3", "e8m0", "int"]


@dataclass(frozen=True, slots=True)
class SuperScale:
    """Two-level scales (K-quants): integer sub-scales under one float scale per `group` inputs.

    The scale of a sub-group is `float(super) * int(sub)`, exact in fp32; likewise the offset,
    which is `-float(super_min) * int(sub_min)`.
    """

    bits: int
    signed: bool
    group: int = 256


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How a value is represented: `w = fl(fl(s * (q - z)) + m)`, in fp32, in this order.

    kind        float (no scale needed), int (codes of a uniform grid), codebook (code -> level).
    bits        bits of one code.
    variant     the element type where kind and bits don't settle it: "fp32", "fp16", "bf16",
                "e4m3", "e5m2" for floats; "nf4", "iq4nl", "learned" for codebooks; "ternary" and
                "binary" for ints of {-1, 0, 1} and {-1, 1}; otherwise "".
    zero        "none": the grid is symmetric, code 2**(bits-1) stands for 0;
                "int": an integer zero point per group; "real": an offset m per group (Q4_1, HQQ).
    scale       type of the stored scale ("int" when `super_scale` is given).
    super_scale two-level scales, or None.

    `parse(str(f)) == f` for every valid f; the grammar stands in `docs/formats.md`.
    """

    kind: Kind
    bits: int
    granularity: Granularity = PerTensor()
    variant: str = ""
    zero: Zero = "none"
    scale: ScaleType = "fp16"
    super_scale: SuperScale | None = None
