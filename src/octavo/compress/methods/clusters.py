"""k-means in one dimension: clusters are runs of sorted values, so running sums say everything."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


class Points(NamedTuple):
    """Sorted values with running sums of weights, weighted values and weighted squares [n + 1]."""

    x: F64
    w: F64
    wx: F64
    wxx: F64

    @classmethod
    def of(cls, x: F64, weight: F64) -> Points:
        """Sorted x [n]; weights that are all 0 count as equal."""
        weight = weight if weight.any() else np.ones_like(x)
        return cls(x, *(_running(weight * power) for power in (np.ones_like(x), x, x * x)))

    def summary(self, count: int) -> Points:
        """About `count` points at most, each a run of these: runs end at evenly spaced values and
        at evenly spaced ranks, so that neither the tails nor the middle are coarse."""
        n = len(self.x)
        if n <= count:
            return self
        by_rank = np.linspace(0, n, count // 2 + 1).astype(np.intp)
        by_value = np.searchsorted(self.x, np.linspace(self.x[0], self.x[-1], count // 2 + 1))
        cuts = np.unique(np.concatenate([by_rank, by_value, [0, n]]))
        w, wx, wxx = (sums[cuts] for sums in (self.w, self.wx, self.wxx))
        middles = self.x[(cuts[:-1] + cuts[1:] - 1) // 2]
        return Points(_ratio(np.diff(wx), np.diff(w), middles), w, wx, wxx)

    def cost(self, start: Any, stop: Any) -> F64:
        """Weighted squared distance of points [start, stop) to their mean."""
        w, wx, wxx = (sums[stop] - sums[start] for sums in (self.w, self.wx, self.wxx))
        found: F64 = np.maximum(wxx - _ratio(wx * wx, w, np.zeros_like(w)), 0.0)
        return found

    def means(self, cuts: Index, otherwise: F64) -> F64:
        """Of the runs between `cuts`, never outside a run; `otherwise` for one without weight."""
        first = self.x[np.minimum(cuts[:-1], len(self.x) - 1)]
        last = self.x[np.maximum(cuts[1:] - 1, 0)]
        w = np.diff(self.w[cuts])
        found = _ratio(np.diff(self.wx[cuts]), w, first).clip(first, np.maximum(first, last))
        return np.where(w > 0, found, otherwise)


def lloyd(points: Points, c: F64, iterations: int) -> tuple[F64, list[float]]:
    """Centroids after at most `iterations` steps from ascending c, and the objective before each
    step and at the end: values go to their nearest centroid, centroids to their values' mean."""
    errors: list[float] = []
    for _ in range(iterations):
        cuts = borders(points, c)
        errors.append(distance(points, cuts, c))
        moved = points.means(cuts, c)
        if np.array_equal(moved, c):
            break
        c = moved
    errors.append(distance(points, borders(points, c), c))
    return c, errors


def borders(points: Points, c: F64) -> Index:
    """Where the run of each centroid starts, and n: values in the middle go to the lower one."""
    middles = (c[:-1] + c[1:]) / 2
    inner = np.searchsorted(points.x, middles, side="right")
    return np.concatenate([[0], inner, [len(points.x)]]).astype(np.intp)


def distance(points: Points, cuts: Index, c: F64) -> float:
    """sum w (x - c)^2 over runs."""
    w, wx, wxx = (np.diff(sums[cuts]) for sums in (points.w, points.wx, points.wxx))
    return float((wxx - 2 * c * wx + c * c * w).sum())


def optimal(points: Points, k: int) -> F64:
    """The best k centroids by dynamic programming over the last run's start: O(k n^2)."""
    n = len(points.x)
    ends = np.arange(n + 1)
    cost = points.cost(ends[:, None], np.maximum(ends[None, :], ends[:, None]))
    cost[ends[:, None] > ends[None, :]] = np.inf
    best, starts = cost[0], []
    for _ in range(k - 1):
        total = best[:, None] + cost
        starts.append(total.argmin(0))
        best = total.min(0)
    cuts = [n]
    for start in reversed(starts):
        cuts.append(int(start[cuts[-1]]))
    edges = np.array([0, *reversed(cuts)], np.intp)
    nearest_x = points.x[np.minimum(edges[:-1], n - 1)]
    return np.sort(points.means(edges, nearest_x))


def _running(x: F64) -> F64:
    return np.concatenate([[0.0], np.cumsum(x)])


def _ratio(x: F64, by: F64, otherwise: F64) -> F64:
    out: F64 = np.array(np.broadcast_to(otherwise, x.shape), np.float64)
    return np.divide(x, by, out=out, where=by > 0)
