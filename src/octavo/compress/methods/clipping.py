"""Clipping ranges: what is beyond a group's range is stored as its end, so that the rest of the
group gets finer steps (methods.md, section 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from octavo.compress.methods.awq_clip import group_errors
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import fake_quantize

Rule = Literal["none", "fixed", "percentile", "mse", "output"]
RULES: tuple[Rule, ...] = ("none", "fixed", "percentile", "mse", "output")
SHARES = tuple(1 - i / 100 for i in range(80))  # of the largest weight: 1, 0.99, ... 0.21 as GPTQ's


def fixed_range(W: Tensor, target: NumberFormat, share: float) -> Tensor:
    """W [out, in] within `share` of each group's range: of its largest magnitude, or, where the
    format has a zero point or offset, of its two ends."""
    grouped = _grouped(W, target)
    if target.zero == "none":
        limit = share * grouped.abs().amax(-1, keepdim=True)
        return grouped.clamp(-limit, limit).reshape(W.shape)
    low = share * grouped.amin(-1, keepdim=True).clamp(max=0)
    return grouped.clamp(low, share * grouped.amax(-1, keepdim=True).clamp(min=0)).reshape(W.shape)


def percentile_range(W: Tensor, target: NumberFormat, percent: float) -> Tensor:
    """W within the smallest of its own magnitudes that `percent` % of its group don't exceed."""
    grouped = _grouped(W, target)
    size = grouped.shape[-1]
    rank = max(1, -int(-size * percent // 100))  # rounded up
    limit = grouped.abs().kthvalue(rank, -1, keepdim=True).values
    return grouped.clamp(-limit, limit).reshape(W.shape)


def least_squares_range(W: Tensor, target: NumberFormat) -> Tensor:
    """W within the share of SHARES whose rounding has the least squared error, in each group."""
    return _search(W, target, lambda D: _grouped(D, target).square().sum(-1, keepdim=True))


def output_aware_range(W: Tensor, target: NumberFormat, H: Tensor) -> Tensor:
    """W within the share of SHARES that loses the least of the output: a group's part of
    tr((W - Q) H (W - Q)^T), H fp32 [in, in]."""
    shape = target.groups((W.shape[0], W.shape[1]))
    return _search(W, target, lambda D: group_errors(D, H, shape))


def _search(W: Tensor, target: NumberFormat, lost: Callable[[Tensor], Tensor]) -> Tensor:
    best, least = W, None
    for share in SHARES:
        clipped = fixed_range(W, target, share)
        error = lost(W - fake_quantize(clipped, target, torch))
        if least is None:
            best, least = clipped, error
            continue
        better = error < least
        best = _grouped(clipped, target).where(better, _grouped(best, target)).reshape(W.shape)
        least = error.minimum(least)
    return best


def _grouped(W: Tensor, target: NumberFormat) -> Tensor:
    return W.reshape(target.groups((W.shape[0], W.shape[1])))
