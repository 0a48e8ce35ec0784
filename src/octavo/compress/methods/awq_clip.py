"""AWQ's second step (arXiv 2306.00978, section 3.2): clip where that lowers the output's error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.core.errors import ConfigError, FormatError
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rtn import encode, fake_quantize
from octavo.spec.decoder import Part


@dataclass(frozen=True, slots=True)
class AwqClip:
    """Encoder: shrinks the range of each group while the error of the layer's output falls.

    The range is (1 - i / points) max|w|, i / points below max_shrink. A group's error over all
    tokens is its part of tr((W - Q) H (W - Q)^T), so H replaces samples. With one-level scales no
    group is worse than when rounded to nearest. Not for parts in `skips`: q and k meet in a
    product, where the error of their own outputs says little.
    """

    needs: ClassVar[Needs] = Needs.HESSIAN
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="searched on a grid",
        format="int4_g64_asym", source="arXiv 2306.00978, section 3.2",
        synonyms=("clipping", "output-aware clipping"),
    )  # fmt: skip
    skips: ClassVar[tuple[Part, ...]] = ("q", "k")

    points: int = 20
    max_shrink: float = 0.5

    def __post_init__(self) -> None:
        if self.points < 1 or not 0 < self.max_shrink < 1:
            raise ConfigError("awq_clip: points must be at least 1, max_shrink between 0 and 1")

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        assert stats.hessian is not None
        W = weight if mask is None else weight * mask
        grouped = target.groups((W.shape[0], W.shape[1]))
        limit = W.reshape(grouped).abs().amax(-1, keepdim=True)
        best, least = W, torch.full_like(limit, torch.inf)
        for i in range(max(1, round(self.max_shrink * self.points))):
            p = 1 - i / self.points
            clipped = W.reshape(grouped).clamp(-p * limit, p * limit)
            Q = fake_quantize(clipped.reshape(W.shape), target, torch)
            error = group_errors(W - Q, stats.hessian, grouped)
            best = clipped.where(error < least, best.reshape(grouped)).reshape(W.shape)
            least = error.minimum(least)
        made = encode(best.numpy(), target)
        if mask is not None and made.dequantize()[~mask.numpy()].any():
            raise FormatError(f"{target} can't store exact zeros: pruned weights need a zero")
        return made


def group_errors(D: Tensor, H: Tensor, grouped: tuple[int, int, int]) -> Tensor:
    """diag(D_g H_gg D_g^T) of each group, shaped [rows of scales, groups, 1]."""
    rows, groups, _ = grouped
    n = D.shape[1] // groups
    D_g = D.reshape(-1, groups, n).transpose(0, 1)
    H_gg = H.reshape(groups, n, groups, n).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    error = ((D_g @ H_gg) * D_g).sum(-1).T
    return (error if rows == D.shape[0] else error.sum(0, keepdim=True))[..., None]
