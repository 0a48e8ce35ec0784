"""Round to nearest: every weight to its closest level, by the format's own rule for scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from octavo.compress.base import LinearStats, Needs
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import Convention

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rtn:
    """Needs no data.

    convention  how scales are chosen (docs/formats.md); None: the format's default.
    """

    needs: ClassVar[Needs] = Needs.NOTHING

    convention: Convention | None = None

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        kept = weight if mask is None else weight.masked_fill(~mask, 0.0)  # never -0
        return rtn.encode(kept.contiguous().numpy(), target, self.convention)
