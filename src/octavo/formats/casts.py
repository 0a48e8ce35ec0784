"""What a cast to a narrower float would do to values, counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from octavo.formats.floats import Array, largest, round_float


@dataclass(frozen=True, slots=True)
class CastCounts:
    """Of `values` finite numbers: how many overflow (become infinite, or are cut to the largest of
    an 8-bit float), underflow (become 0 and weren't), or are rounded otherwise."""

    values: int = 0
    overflow: int = 0
    underflow: int = 0
    rounded: int = 0

    def __add__(self, other: CastCounts) -> CastCounts:
        return CastCounts(
            self.values + other.values,
            self.overflow + other.overflow,
            self.underflow + other.underflow,
            self.rounded + other.rounded,
        )

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def count_cast(x: Array, variant: str, xp: Any) -> CastCounts:
    """Counts for float32 x (numpy, torch) cast to `variant`, half to even."""
    cast = round_float(x, variant, xp)
    wide = variant in ("fp16", "bf16")
    overflow = xp.isinf(cast) if wide else xp.abs(x) > largest(variant)
    underflow = (cast == 0) & (x != 0)
    changed = cast != x
    total = 1
    for size in x.shape:
        total *= int(size)
    lost = [int(found.sum()) for found in (overflow, underflow, changed)]
    return CastCounts(total, lost[0], lost[1], lost[2] - lost[0] - lost[1])
