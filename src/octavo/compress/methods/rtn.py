"""Round to nearest: every weight to its closest level, by the format's own rule for scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.compress.methods.clipping import (
    RULES,
    Rule,
    fixed_range,
    least_squares_range,
    output_aware_range,
    percentile_range,
)
from octavo.core.errors import ConfigError, FormatError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import Convention

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rtn:
    """Needs no data, unless the range is chosen by the output.

    convention  how scales are chosen (docs/formats.md); None: the format's default.
    clip        the range of a group: "none" all of it, "fixed" a `share` of its largest magnitude,
                "percentile" what `percent` % of its weights don't exceed, "mse" the share with the
                least squared error, "output" the one that loses the least of the layer's output.
    """

    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="heuristic", format="int4_g64",
        source="docs/formats.md",
        synonyms=("round to nearest", "absmax", "minmax", "linear quantization", "clipping"),
    )  # fmt: skip

    convention: Convention | None = None
    clip: Rule = "none"
    share: float = 0.9
    percent: float = 99.0

    def __post_init__(self) -> None:
        if self.clip not in RULES:
            raise ConfigError(f"rtn: clip is {self.clip!r}; it must be one of {', '.join(RULES)}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"rtn: share is {self.share:g}; it must be above 0 and at most 1")
        if not 0 < self.percent <= 100:
            raise ConfigError(f"rtn: percent is {self.percent:g}; it must be above 0, up to 100")

    @property
    def needs(self) -> Needs:
        return Needs.HESSIAN if self.clip == "output" else Needs.NOTHING

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        if target.variant == "learned":
            raise FormatError(
                f"rtn can't make {target}, whose levels are learned: encode it by kmeans or "
                "squeezellm, or take an integer format such as int4_g64"
            )
        kept = weight if mask is None else weight.masked_fill(~mask, 0.0)  # never -0
        made = self._clipped(kept.contiguous(), target, stats)
        return rtn.encode(made.numpy(), target, self.convention)

    def _clipped(self, W: Tensor, target: NumberFormat, stats: LinearStats) -> Tensor:
        if self.clip == "none":
            return W
        if target.plain:
            raise FormatError(f"{target} has no scale whose range could be clipped: leave clip out")
        match self.clip:
            case "fixed":
                return fixed_range(W, target, self.share)
            case "percentile":
                return percentile_range(W, target, self.percent)
            case "mse":
                return least_squares_range(W, target)
            case _:
                assert stats.hessian is not None
                return output_aware_range(W, target, stats.hessian)
