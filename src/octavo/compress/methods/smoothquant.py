"""SmoothQuant (arXiv 2211.10438): move the difficulty of outlier inputs into the weights.

Y = (X diag(s)^-1) (diag(s) W) is the same product for any s > 0 (eq. 3). Input j and its weights
share the burden by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (eq. 4): at alpha = 0.5 both have
the same largest magnitude; alpha = 1 leaves none to the inputs, alpha = 0 none to the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from octavo.compress.base import BlockView, LinearStats, Needs, ScaleFold
from octavo.compress.facts import Facts
from octavo.core.errors import ConfigError
from octavo.formats.number_format import NumberFormat
from octavo.spec.decoder import Role
from octavo.spec.graph import FoldEdge, fold_edges

_SMALLEST = 1e-5  # of scales and of weights that are divided by, as in the authors' code


@dataclass(frozen=True, slots=True)
class SmoothQuant:
    """Transform of the linears behind a norm: q, k, v; gate, up. The norm's weight takes 1 / s.

    alpha    0.5 suits most models; more where outliers are stronger (the paper: 0.75 for GLM-130B).

    max|W_j| runs over all quantized linears that share the input: a router, which stays in fp32,
    only follows. An input that was never other than 0 is left alone, and so is a norm of whose
    readers none is to be encoded.
    """

    needs: ClassVar[Needs] = Needs.ABSMAX
    facts: ClassVar[Facts] = Facts(
        output="preserved", quantizes="nothing by itself", choice="closed form",
        format="int8_channel", source="arXiv 2211.10438",
        synonyms=("activation smoothing", "w8a8", "outliers"),
        proof="tests/compress/methods/test_smoothquant.py",
    )  # fmt: skip

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"smoothquant: alpha is {self.alpha:g}; it must be 0 to 1")

    def plan(
        self, block: BlockView, stats: Mapping[Role, LinearStats], target: NumberFormat
    ) -> Sequence[ScaleFold]:
        seen = {role: found for role, found in stats.items() if found.tokens}
        edges = (e for e in fold_edges(block.spec, block.layer) if seen.keys() & set(e.targets))
        return [self._fold(edge, block, seen) for edge in edges if is_norm(edge.source)]

    def scale(self, max_X: Tensor, max_W: Tensor) -> Tensor:
        """s of eq. 4."""
        s = max_X**self.alpha / max_W.clamp(min=_SMALLEST) ** (1 - self.alpha)
        return s.clamp(min=_SMALLEST).masked_fill(max_X == 0, 1.0)

    def _fold(
        self, edge: FoldEdge, block: BlockView, stats: Mapping[Role, LinearStats]
    ) -> ScaleFold:
        linears = [role for role in edge.targets if role in stats]
        max_X = largest([x for role in linears if (x := stats[role].absmax) is not None])
        max_W = largest([block.weight(role).abs().amax(0) for role in linears])
        return ScaleFold(edge.source, edge.targets, self.scale(max_X, max_W))


def is_norm(role: Role) -> bool:
    """Whether a role is a norm's weight."""
    return role.part.endswith("norm")


def largest(each: Sequence[Tensor]) -> Tensor:
    """Elementwise maximum."""
    found = each[0]
    for other in each[1:]:
        found = found.maximum(other)
    return found
