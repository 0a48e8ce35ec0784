"""Which format each matrix gets under a budget: a multiple-choice knapsack.

Every item (a matrix) takes one of its options, each with a size in bytes and a cost (the KL it is
expected to add). Small problems are solved exactly by dynamic programming over undominated states
(Nemhauser and Ullmann 1969), cut by the Lagrangian's bound; for problems whose states grow beyond
`STATES` the Lagrangian's own answer, made better by single changes, is returned with its gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ConfigError

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

STATES = 1 << 16
_HALVINGS = 80  # of the price per byte: to the last bit of a double


@dataclass(frozen=True, slots=True)
class Item:
    """Options of one matrix, index by index: bytes (int64) and costs (float64), both [options]."""

    sizes: I64
    costs: F64


@dataclass(frozen=True, slots=True)
class Allocation:
    """`picks`: an option per item. Nothing within the limit costs less than `cost` - `gap`."""

    picks: tuple[int, ...]
    size: int
    cost: float
    gap: float = 0.0


def check_room(least: int, limit: int) -> None:
    """Raises ConfigError when the smallest formats of all items exceed the limit."""
    if least > limit:
        raise ConfigError(
            f"the budget leaves {limit} bytes for matrices, and the smallest formats take {least}: "
            "raise it, or allow formats of fewer bits"
        )


def allocate(items: Sequence[Item], limit: int, states: int = STATES) -> Allocation:
    """The least cost in at most `limit` bytes. Raises ConfigError when nothing fits."""
    check_room(sum(int(item.sizes.min()) for item in items), limit)
    start, bound = _relaxed(items, limit)
    start = _filled(items, start, limit)
    exact = _exact(items, limit, start.cost, states)
    if exact is not None:
        return exact if exact.cost < start.cost else start
    return Allocation(start.picks, start.size, start.cost, max(0.0, start.cost - bound))


def allocate_cost(items: Sequence[Item], limit: float, states: int = STATES) -> Allocation:
    """The fewest bytes whose cost is at most `limit`. Raises ConfigError when nothing is.

    A bisection over sizes: the least cost never grows with the size allowed.
    """
    low = sum(int(item.sizes.min()) for item in items)
    high = sum(int(item.sizes.max()) for item in items)
    best = allocate(items, high, states)
    if best.cost > limit:
        raise ConfigError(
            f"the budget allows a KL of {limit:g}, and the best formats are expected to cost "
            f"{best.cost:.2g}: raise it, or allow formats of more bits"
        )
    while low < high:
        middle = (low + high) // 2
        found = allocate(items, middle, states)
        if found.cost <= limit:
            best, high = found, min(middle, found.size)
        else:
            low = middle + 1
    return best


def _relaxed(items: Sequence[Item], limit: int) -> tuple[Allocation, float]:
    """The best feasible answer of a price per byte, and the dual's bound from below."""
    low, high = 0.0, 1.0
    while _priced(items, high).size > limit:
        high *= 4
    best, bound = _priced(items, high), -np.inf
    for halving in range(_HALVINGS):
        at = (low + high) / 2 if halving else 0.0
        found = _priced(items, at)
        bound = max(bound, found.cost + at * (found.size - limit))
        if found.size <= limit:
            best, high = (found if found.cost < best.cost else best), at
        else:
            low = at
    return best, float(bound)


def _priced(items: Sequence[Item], price: float) -> Allocation:
    """Every item's option of least cost + price * size; of equal ones the smaller."""
    picks = []
    for item in items:
        total = item.costs + price * item.sizes
        ties = np.flatnonzero(total == total.min())
        picks.append(int(ties[item.sizes[ties].argmin()]))
    return _of(items, picks)


def _of(items: Sequence[Item], picks: Sequence[int]) -> Allocation:
    size = sum(int(item.sizes[pick]) for item, pick in zip(items, picks, strict=True))
    cost = sum(float(item.costs[pick]) for item, pick in zip(items, picks, strict=True))
    return Allocation(tuple(picks), size, cost)


def _filled(items: Sequence[Item], start: Allocation, limit: int) -> Allocation:
    """Single changes that lower the cost and still fit, the largest gain first."""
    picks = list(start.picks)
    size = start.size
    while True:
        best, gain = None, 0.0
        for n, item in enumerate(items):
            gains = item.costs[picks[n]] - item.costs
            gains[size - item.sizes[picks[n]] + item.sizes > limit] = 0
            if gains.max() > gain:
                best, gain = (n, int(gains.argmax())), float(gains.max())
        if best is None:
            return _of(items, picks)
        n, pick = best
        size += int(items[n].sizes[pick] - items[n].sizes[picks[n]])
        picks[n] = pick


def _exact(items: Sequence[Item], limit: int, known: float, states: int) -> Allocation | None:
    """Undominated (size, cost) states, item by item; None when they outgrow `states`."""
    rest_size = np.cumsum([0, *(int(item.sizes.min()) for item in reversed(items))])[::-1]
    bounds = [_HullBound(items[n:]) for n in range(len(items) + 1)]
    sizes, costs = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[I64, I64]] = []
    for n, item in enumerate(items):
        size = (sizes[:, None] + item.sizes[None]).ravel()
        cost = (costs[:, None] + item.costs[None]).ravel()
        room = limit - size
        keep = np.flatnonzero((room >= rest_size[n + 1]) & (room >= 0))
        keep = keep[cost[keep] + bounds[n + 1](room[keep]) <= known * (1 + 1e-12)]
        order = keep[np.lexsort((cost[keep], size[keep]))]
        best = np.minimum.accumulate(cost[order]) if len(order) else cost[order]
        first = np.r_[True, best[1:] < best[:-1]][: len(order)]
        order = order[first]
        if len(order) > states or not len(order):
            return None
        trail.append((order // len(item.sizes), order % len(item.sizes)))
        sizes, costs = size[order], cost[order]
    return _of(items, _traced(trail, int(costs.argmin())))


def _traced(trail: Sequence[tuple[I64, I64]], at: int) -> list[int]:
    picks = []
    for parents, options in reversed(trail):
        picks.append(int(options[at]))
        at = int(parents[at])
    return picks[::-1]


class _HullBound:
    """The least cost of the items in so much room, options mixed at will (the LP's optimum): a
    bound from below. Steps of all items' convex hulls, the steepest first."""

    def __init__(self, items: Sequence[Item]) -> None:
        steps = [step for item in items for step in _hull_steps(item)]
        steps.sort(key=lambda step: step[1] / step[0])
        start = sum(int(item.sizes.min()) for item in items)
        cost = sum(float(item.costs[_smallest(item)]) for item in items)
        self._sizes = np.cumsum([start, *(size for size, _ in steps)]).astype(np.float64)
        self._costs = np.cumsum([cost, *(change for _, change in steps)])

    def __call__(self, room: I64) -> F64:
        bound: F64 = np.interp(room, self._sizes, self._costs)
        return bound


def _smallest(item: Item) -> int:
    """The cheapest of the options of least size."""
    return int(np.lexsort((item.costs, item.sizes))[0])


def _hull_steps(item: Item) -> list[tuple[int, float]]:
    """(bytes more, cost change) along the lower convex hull, from the smallest option on."""
    at = _smallest(item)
    steps: list[tuple[int, float]] = []
    while True:
        more = item.sizes - item.sizes[at]
        change = item.costs - item.costs[at]
        better = np.flatnonzero((more > 0) & (change < 0))
        if not len(better):
            return steps
        slope = change[better] / more[better]
        after = better[np.lexsort((-more[better], slope))[0]]
        steps.append((int(more[after]), float(change[after])))
        at = int(after)
