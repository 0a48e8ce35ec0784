"""AWQ (arXiv 2306.00978): protect the weights of large inputs by scaling.

A weight that is multiplied by s before rounding, its input divided by s, has its error divided by
s as long as the group's scale stays (section 3.2). Which inputs matter shows in the activations:
s = s_X^alpha, s_X being the mean |x| of an input, and alpha is searched for the least error of the
module's output (eqs. 4 and 5). No weight stays in 16 bits: that was the motivating experiment.
The second half of the method, clipping, is `awq_clip.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from octavo.compress.base import BlockView, LinearStats, Needs, ScaleFold
from octavo.compress.facts import Facts
from octavo.core.errors import ConfigError
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import fake_quantize
from octavo.spec.decoder import Part, Role
from octavo.spec.graph import FoldEdge, fold_edges

_FINALISTS = 4
_INSPECTED: Mapping[Part, Part] = MappingProxyType({"k": "q", "v": "q", "up": "gate"})


@dataclass(frozen=True, slots=True)
class Awq:
    """Transform of every fold edge: norm to q, k, v; v to o; norm to gate, up; up to down. With
    grouped queries, where the authors skip v to o, heads that read one value head get one scale. An
    edge is left alone when no reader is to be encoded, or no calibration token reached one.

    points   of the grid alpha = 0, 1 / points, ... below 1. Alpha = 0 is rounding without scales:
             on the calibration samples the result is never worse.
    share    of the samples on which all points are compared; the best three and alpha = 0 are then
             compared on all of them. 1: all points on all samples, as the authors do.
    """

    needs: ClassVar[Needs] = Needs.MEAN_ABS | Needs.SAMPLES
    facts: ClassVar[Facts] = Facts(
        output="preserved", quantizes="nothing by itself", choice="searched on a grid",
        format="int4_g64_asym", source="arXiv 2306.00978",
        synonyms=("activation-aware weight quantization", "salient channels"),
        proof="tests/compress/methods/test_awq.py",
    )  # fmt: skip

    points: int = 20
    share: float = 0.125

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ConfigError(f"awq: points is {self.points}; it must be at least 1")
        if not 0 < self.share <= 1:
            raise ConfigError(f"awq: share is {self.share:g}; it must be above 0, up to 1")

    def plan(
        self, block: BlockView, stats: Mapping[Role, LinearStats], target: NumberFormat
    ) -> Sequence[ScaleFold]:
        seen = {role: found for role, found in stats.items() if found.tokens}
        edges = (e for e in fold_edges(block.spec, block.layer) if seen.keys() & set(e.targets))
        folds = [self.best(edge, block, seen, target) for edge in edges]
        return [fold for fold in folds if (fold.scale != 1).any()]

    def best(
        self,
        edge: FoldEdge,
        block: BlockView,
        stats: Mapping[Role, LinearStats],
        target: NumberFormat,
    ) -> ScaleFold:
        """The scale of least loss for one edge, by those of its readers that have statistics."""
        seen = {role: stats[role] for role in edge.targets if role in stats}
        s_X = shared(edge, mean_abs(list(seen.values())))
        scales = [self.scale(s_X, i / self.points) for i in range(self.points)]
        if self.share < 1 and len(scales) > _FINALISTS:
            few = {role: fewer(found, self.share) for role, found in seen.items()}
            chosen = sorted(least(scales[1:], block, few, target)[: _FINALISTS - 1])
            scales = [scales[0], *(scales[1 + i] for i in chosen)]
        return ScaleFold(edge.source, edge.targets, scales[least(scales, block, seen, target)[0]])

    def scale(self, s_X: Tensor, alpha: float) -> Tensor:
        """s_X^alpha, its extremes centred on 1."""
        s = (s_X**alpha).clamp(min=1e-4)
        return s / (s.max() * s.min()).sqrt()


def mean_abs(stats: Sequence[LinearStats]) -> Tensor:
    """s_X over all tokens: experts see tokens of their own."""
    total = sum(entry.tokens for entry in stats)
    parts = [x * (e.tokens / total) for e in stats if (x := e.mean_abs) is not None]
    return sum(parts[1:], parts[0])


def shared(edge: FoldEdge, s_X: Tensor) -> Tensor:
    """The mean over inputs that come from the same channel of the producer."""
    if edge.repeat == 1:
        return s_X
    heads = s_X.reshape(-1, edge.repeat, edge.block)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def fewer(stats: LinearStats, share: float) -> LinearStats:
    """The first of the samples: what attention gives them does not depend on the others."""
    x = stats.samples
    return stats if x is None else replace(stats, samples=x[: max(1, round(share * len(x)))])


def least(
    scales: Sequence[Tensor],
    block: BlockView,
    stats: Mapping[Role, LinearStats],
    target: NumberFormat,
) -> list[int]:
    """Their places by loss, the least first; of equal ones the earlier."""
    wanted = outputs(block, stats, {})
    losses = [loss(s, block, stats, target, wanted) for s in scales]
    return sorted(range(len(scales)), key=losses.__getitem__)


def outputs(
    block: BlockView, stats: Mapping[Role, LinearStats], weights: Mapping[Role, Tensor]
) -> list[Tensor]:
    """What the modules around the readers compute for the samples, with some weights replaced."""
    modules = {(_INSPECTED.get(role.part, role.part), role.expert): role for role in stats}
    inputs = [(role, stats[role].samples) for role in modules.values()]
    return [block.output(role, x, weights) for role, x in inputs if x is not None]


def loss(
    s: Tensor,
    block: BlockView,
    stats: Mapping[Role, LinearStats],
    target: NumberFormat,
    wanted: Sequence[Tensor],
) -> float:
    """Squared error of the modules' outputs with weights Q(W * s) / s (eq. 4)."""
    scaled = {role: fake_quantize(block.weight(role) * s, target, torch) / s for role in stats}
    pairs = zip(outputs(block, stats, scaled), wanted, strict=True)
    return sum(float((y - want).double().square().sum()) for y, want in pairs)
