"""Magnitude pruning (arXiv 1506.02626): small weights matter least. Needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.compress.methods.patterns import Pattern, Scope, check_scope
from octavo.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Magnitude:
    """Pruner of the smallest |W|.

    sparsity   share of the weights that go (of an n:m pattern its name says it).
    pattern    "" (any weight), "2:4", "16x32": see patterns.py.
    scope      what competes: all weights of the "tensor", as Wanda's authors take it, or of a
               "row".
    threshold  instead of a share: every |W| below it goes, however many these are.
    """

    needs: ClassVar[Needs] = Needs.NOTHING
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="nothing by itself", choice="heuristic",
        format="bf16", source="arXiv 1506.02626",
        synonyms=("pruning", "sparsity", "2:4"),
    )  # fmt: skip

    sparsity: float = 0.5
    pattern: str = ""
    scope: Scope = "tensor"
    threshold: float | None = None

    def __post_init__(self) -> None:
        Pattern(self.pattern, self.sparsity)
        check_scope(self.scope)
        if self.threshold is None:
            return
        if type(self.threshold) not in (int, float) or not self.threshold >= 0:
            raise ConfigError(f"magnitude: threshold is {self.threshold!r}; it must be at least 0")
        if self.pattern:
            raise ConfigError("magnitude: a threshold goes without a pattern; leave one out")

    def mask(self, weight: Tensor, stats: LinearStats) -> Tensor:
        if self.threshold is not None:
            return weight.abs() >= self.threshold
        return Pattern(self.pattern, self.sparsity).mask(weight.square(), self.scope)
