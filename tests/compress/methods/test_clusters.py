"""k-means in one dimension against exhaustive search, a plain dynamic program, and itself."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.compress.methods.clusters import Points, borders, distance, lloyd, optimal

F64 = npt.NDArray[np.float64]


def drawn(n: int, seed: int) -> tuple[F64, F64]:
    random = np.random.default_rng(seed)
    return np.sort(random.standard_normal(n)), random.gamma(0.5, size=n)


def error(x: F64, w: F64, c: F64) -> float:
    return float((w * ((x[:, None] - c) ** 2).min(1)).sum())


def least_error(x: F64, w: F64, k: int) -> float:
    """The exact optimum for sorted x, from the definition: best[j] over the last run's start."""
    n = len(x)
    cost = np.zeros((n + 1, n + 1))
    for i in range(n):
        mean = np.cumsum(w[i:] * x[i:]) / np.cumsum(w[i:])
        square = np.cumsum(w[i:] * (x[i:] - x[i]) ** 2)
        cost[i, i + 1 :] = square - np.cumsum(w[i:]) * (mean - x[i]) ** 2
    best = cost[0].copy()
    for _ in range(k - 1):
        best = np.array([min(best[i] + cost[i, j] for i in range(j + 1)) for j in range(n + 1)])
    return float(best[n])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_optimum_is_that_of_exhaustive_search(k: int, seed: int) -> None:
    x, w = drawn(9, seed)
    every = []
    for inner in combinations(range(1, 9), k - 1):
        runs = list(zip((0, *inner), (*inner, 9), strict=True))
        c = np.array([np.average(x[a:b], weights=w[a:b]) for a, b in runs])
        every.append(
            sum((w[a:b] * (x[a:b] - m) ** 2).sum() for (a, b), m in zip(runs, c, strict=True))
        )
    assert error(x, w, optimal(Points.of(x, w), k)) == pytest.approx(min(every), rel=1e-12)
    assert least_error(x, w, k) == pytest.approx(min(every), rel=1e-12)


@pytest.mark.parametrize("k", [4, 8])
def test_clusters_of_512_values_are_the_optimum(k: int) -> None:
    x, w = drawn(512, 5)
    c, _ = lloyd(Points.of(x, w), optimal(Points.of(x, w), k), 100)
    assert error(x, w, c) == pytest.approx(least_error(x, w, k), rel=1e-9)


def test_the_start_from_a_summary_is_within_one_percent() -> None:
    """As for large tensors: an eighth as many points as values."""
    x, w = drawn(512, 6)
    points = Points.of(x, w)
    summary = points.summary(64)
    assert len(summary.x) <= 65
    assert summary.w[-1] == points.w[-1]
    assert (np.diff(summary.x) >= 0).all()
    c, _ = lloyd(points, optimal(summary, 8), 100)
    assert error(x, w, c) <= 1.01 * least_error(x, w, 8)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 80), st.integers(1, 9), st.integers(0, 10_000), st.booleans())
def test_the_objective_never_rises(n: int, k: int, seed: int, clumped: bool) -> None:
    x, w = drawn(n, seed)
    if clumped:
        x, w = np.sort(np.round(x)), np.round(w)  # equal values, weights of 0
    points = Points.of(x, w)
    w = w if w.any() else np.ones(n)
    c, errors = lloyd(points, np.linspace(x[0], x[-1], k), 50)
    rounding = 1e-12 * max(1.0, float((w * x * x).sum()))
    assert all(b <= a + rounding for a, b in pairwise(errors))
    assert errors[-1] == pytest.approx(error(x, w, c), rel=1e-9, abs=rounding)
    assert (np.diff(c) >= 0).all()


def test_no_more_clusters_than_values_is_exact() -> None:
    x = np.array([-3.0, -3.0, 0.5, 7.0])
    c = optimal(Points.of(x, np.ones(4)), 8)
    assert len(c) == 8
    assert set(x) <= set(c)


def test_the_mean_of_equal_values_is_that_value() -> None:
    """Differences of running sums would be off by some units in the last place."""
    x = np.repeat([-0.7, 0.1, 0.3], 1000)
    w = np.random.default_rng(0).gamma(0.5, size=3000)
    points, cuts = Points.of(x, w), np.array([0, 1000, 2000, 3000])
    assert points.means(cuts, np.zeros(3)).tolist() == [-0.7, 0.1, 0.3]


def test_an_outlier_does_not_make_the_summary_coarse() -> None:
    x, w = drawn(512, 7)
    x[-1] = 1e4
    points = Points.of(x, w)
    summary = points.summary(64)
    assert len(summary.x) >= 32
    c, _ = lloyd(points, optimal(summary, 8), 100)
    assert error(x, w, c) <= 1.01 * least_error(x, w, 8)


def test_values_go_to_the_nearest_centroid() -> None:
    points = Points.of(np.array([0.0, 1.0, 2.0, 3.0]), np.ones(4))
    c = np.array([0.0, 2.0])
    assert borders(points, c).tolist() == [0, 2, 4]  # 1 is as near to both: the lower one
    assert distance(points, borders(points, c), c) == 2.0


def test_a_cluster_that_loses_all_values_stays() -> None:
    points = Points.of(np.array([0.0, 0.1, 10.0]), np.ones(3))
    c, _ = lloyd(points, np.array([0.0, 5.0, 10.0]), 10)
    assert c.tolist() == [0.05, 5.0, 10.0]
