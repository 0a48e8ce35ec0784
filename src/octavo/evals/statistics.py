"""Estimates with intervals for values that come token by token.

Neighbouring tokens are not independent, so whole blocks of consecutive tokens are resampled (block
bootstrap). Statistics of two models share the draws and the tokens: their differences are paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
BLOCK = 64  # tokens; far longer than the range of correlation between losses in text
REPLICATES = 1000
QUANTILE_REPLICATES = 200
LEVEL = 0.95
SEED = 20240229


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its standard error, and its 95 % interval."""

    value: float
    error: float
    low: float
    high: float


class Blocks:
    """Bootstrap weights over blocks of `size` consecutive tokens; one set for all statistics."""

    def __init__(self, tokens: int, size: int = BLOCK, seed: int = SEED) -> None:
        if tokens < 1:
            raise ValueError("no tokens")
        self.starts = np.arange(0, tokens, max(1, min(size, tokens // 8)))
        self.lengths = np.diff(np.append(self.starts, tokens)).astype(np.float64)
        count = len(self.starts)
        draws = np.random.Generator(np.random.Philox(seed))
        self.weights = draws.multinomial(count, np.full(count, 1 / count), REPLICATES)

    def mean_replicates(self, values: F64) -> F64:
        """The mean of every resampled text: [REPLICATES]."""
        sums = np.add.reduceat(values, self.starts)
        replicates: F64 = (self.weights @ sums) / (self.weights @ self.lengths)
        return replicates

    def mean(self, values: F64) -> Estimate:
        """The mean of [tokens] values."""
        return estimate(float(values.mean()), self.mean_replicates(values))

    def quantile(self, values: F64, q: float) -> Estimate:
        """The q-quantile (linear interpolation) of [tokens] values."""
        order = np.argsort(values, kind="stable")
        ranked = values[order]
        replicates = [
            _weighted_quantile(ranked, np.repeat(weights, self.lengths.astype(int))[order], q)
            for weights in self.weights[:QUANTILE_REPLICATES]
        ]
        return estimate(float(np.quantile(values, q)), np.asarray(replicates))


def estimate(value: float, replicates: F64) -> Estimate:
    """Value with the spread of its replicates: standard deviation and percentile interval."""
    if not np.isfinite(replicates).all():
        return Estimate(value, np.inf, -np.inf, np.inf)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(value, float(replicates.std(ddof=1)), float(low), float(high))


def wilson(hits: int, trials: int) -> Estimate:
    """A share of independent trials with Wilson's score interval (JASA 22, 1927), which stays
    within 0 and 1 and holds for few hits too. Its error is that of the interval's middle."""
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"{hits} hits of {trials} trials")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, whole = hits / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / whole
    error = sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / whole
    low = 0.0 if hits == 0 else middle - z * error  # exactly, whatever the sums round to
    high = 1.0 if hits == trials else middle + z * error
    return Estimate(share, error, low, high)


def _weighted_quantile(ranked: F64, weights: npt.NDArray[np.int64], q: float) -> float:
    """The quantile of ranked values that each occur `weights` times."""
    cumulated = np.cumsum(weights)
    rank = q * (cumulated[-1] - 1)
    below = np.searchsorted(cumulated, np.floor(rank), side="right")
    above = np.searchsorted(cumulated, np.ceil(rank), side="right")
    share = rank - np.floor(rank)
    return float(ranked[below] * (1 - share) + ranked[above] * share)
