"""Wanda (arXiv 2306.11695): a weight matters as much as it moves its output.

The score of W_ij is |W_ij| * ||X_j||_2 (eq. 1), X_j being input j over the calibration tokens.
Weights of one output compete with each other (section 3); none is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.compress.methods.patterns import Pattern, Scope, check_scope


@dataclass(frozen=True, slots=True)
class Wanda:
    """Pruner.

    sparsity   share of the weights that go (of an n:m pattern its name says it).
    pattern    "" (any weight), "2:4", "16x32": see patterns.py.
    scope      what competes: a "row", which the paper found best, or the "tensor".
    """

    needs: ClassVar[Needs] = Needs.MEAN_SQUARE
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="nothing by itself", choice="heuristic",
        format="bf16", source="arXiv 2306.11695",
        synonyms=("pruning", "sparsity", "weights and activations"),
    )  # fmt: skip

    sparsity: float = 0.5
    pattern: str = ""
    scope: Scope = "row"

    def __post_init__(self) -> None:
        Pattern(self.pattern, self.sparsity)
        check_scope(self.scope)

    def mask(self, weight: Tensor, stats: LinearStats) -> Tensor:
        score = self.score(weight, stats)
        return Pattern(self.pattern, self.sparsity).mask(score.square(), self.scope)

    def score(self, weight: Tensor, stats: LinearStats) -> Tensor:
        """|W_ij| * ||X_j||_2, but for the factor sqrt(tokens), which all share: fp32 [out, in]."""
        assert stats.mean_square is not None
        return weight.abs() * stats.mean_square.sqrt()
