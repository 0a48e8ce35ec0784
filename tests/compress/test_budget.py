"""Allocations under a budget: against brute force, within the limit, and honest about the gap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.compress.budget import Allocation, Item, allocate, allocate_cost
from octavo.core.errors import ConfigError


def item(*options: tuple[int, float]) -> Item:
    sizes, costs = zip(*options, strict=True)
    return Item(np.array(sizes, np.int64), np.array(costs, np.float64))


options = st.lists(st.tuples(st.integers(1, 60), st.floats(0, 8)), min_size=1, max_size=4)
problems = st.lists(options.map(lambda found: item(*found)), min_size=1, max_size=5)


def brute_force(items: list[Item], limit: int) -> float:
    found = [
        sum(float(i.costs[p]) for i, p in zip(items, picks, strict=True))
        for picks in itertools.product(*(range(len(i.sizes)) for i in items))
        if sum(int(i.sizes[p]) for i, p in zip(items, picks, strict=True)) <= limit
    ]
    return min(found, default=np.inf)


def check(items: list[Item], found: Allocation, limit: int) -> None:
    pairs = list(zip(items, found.picks, strict=True))
    assert found.size == sum(int(i.sizes[p]) for i, p in pairs) <= limit
    assert found.cost == pytest.approx(sum(float(i.costs[p]) for i, p in pairs))


@settings(max_examples=300, deadline=None)
@given(problems, st.integers(1, 240))
def test_small_problems_are_solved_exactly(items: list[Item], limit: int) -> None:
    best = brute_force(items, limit)
    if best == np.inf:
        with pytest.raises(ConfigError, match="smallest formats take"):
            allocate(items, limit)
        return
    found = allocate(items, limit)
    check(items, found, limit)
    assert found.gap == 0
    assert found.cost == pytest.approx(best, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(problems, st.integers(1, 240))
def test_without_states_the_gap_holds_the_optimum(items: list[Item], limit: int) -> None:
    best = brute_force(items, limit)
    if best == np.inf:
        return
    found = allocate(items, limit, states=0)
    check(items, found, limit)
    assert found.cost - found.gap - 1e-9 <= best <= found.cost + 1e-9


@settings(max_examples=100, deadline=None)
@given(problems, st.floats(0, 20))
def test_the_fewest_bytes_under_a_cost(items: list[Item], limit: float) -> None:
    sizes = [
        sum(int(i.sizes[p]) for i, p in zip(items, picks, strict=True))
        for picks in itertools.product(*(range(len(i.sizes)) for i in items))
        if sum(float(i.costs[p]) for i, p in zip(items, picks, strict=True)) <= limit
    ]
    if not sizes:
        with pytest.raises(ConfigError, match="expected to cost"):
            allocate_cost(items, limit)
        return
    found = allocate_cost(items, limit)
    assert found.cost <= limit
    assert found.size == min(sizes)


def model_like(count: int, seed: int = 0) -> list[Item]:
    """Matrices of a few shapes, costs about 4^-bits, with sensitivities over three decades."""
    rng = np.random.default_rng(seed)
    bits = np.array([2.625, 3.4375, 4.5, 5.5, 6.5625, 8.5])
    found = []
    for n in range(count):
        weights = (65536, 32768, 196608)[n % 3]
        noise = np.exp(0.2 * rng.standard_normal(len(bits)))
        costs = np.exp(2 * rng.standard_normal()) * 4.0**-bits * noise
        found.append(Item((weights * bits / 8).astype(np.int64), costs))
    return found


@pytest.mark.parametrize("bpw", [3.0, 4.25, 6.0])
def test_a_models_problem_meets_its_size_and_beats_uniform(bpw: float) -> None:
    items = model_like(211)
    total = sum(int(i.sizes[0] * 8 / 2.625) for i in items)
    limit = int(total * bpw / 8)
    found = allocate(items, limit)
    assert 0.99 * limit <= found.size <= limit
    assert found.gap <= 1e-3 * found.cost
    uniform = max(n for n in range(6) if sum(int(i.sizes[n]) for i in items) <= limit)
    assert found.cost < sum(float(i.costs[uniform]) for i in items)
