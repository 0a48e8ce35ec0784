"""Cast: weights to a plain float, with a look at what it would do to the inputs as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.core.errors import FormatError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cast:
    """Every weight becomes the nearest float of the format, ties to even. The driver counts which
    weights overflow, underflow and lose digits, and the same of the layer's inputs, were they cast
    too. A weight that would become infinite is an error."""

    needs: ClassVar[Needs] = Needs.CASTS
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="closed form", format="bf16",
        source="IEEE 754", synonyms=("half precision", "fp16", "bf16", "fp8", "conversion"),
    )  # fmt: skip

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        if not target.plain:
            raise FormatError(f"cast makes plain floats (bf16, fp16, fp8_e4m3); {target} is coded")
        kept = weight if mask is None else weight * mask
        return rtn.encode(kept.contiguous().numpy(), target)
