"""Who runs next: priorities first, then tenants by what they have had, then order of arrival.

Between tenants of equal priority the one that has been served least goes first: the virtual token
counter of "Fairness in Serving Large Language Models" (arXiv:2401.00588, algorithm 2). A tenant
that comes back after a pause is lifted to the least of those that are active, so that it can't
claim what it left unused. With one tenant this is first come, first served.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator

from octavo.engine.sequence import Sequence

_OUTPUT_WEIGHT = 2  # of a row that samples against one of prefill, as in the paper
_MOST_TENANTS = 4096  # counters that are kept of tenants without a live request


def rank(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.rank


class WaitingQueue:
    """Sequences that wait, and what each tenant has been served."""

    def __init__(self) -> None:
        self._queues: dict[str, list[Sequence]] = {}  # per tenant, by rank
        self._live: Counter[str] = Counter()  # sequences that wait or run, per tenant
        self._served: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait, by rank."""
        return iter(sorted((s for q in self._queues.values() for s in q), key=rank))

    def begin(self, tenant: str) -> None:
        """One live sequence more; a tenant without any is lifted to the least of the active."""
        if not self._live[tenant]:
            active = [self._served[name] for name in self._live if name != tenant]
            floor = min(active, default=0.0)
            self._served[tenant] = max(self._served.pop(tenant, 0.0), floor)
            self._forget()
        self._live[tenant] += 1

    def end(self, tenant: str) -> None:
        self._live[tenant] -= 1
        if not self._live[tenant]:
            del self._live[tenant]

    def _forget(self) -> None:
        idle = (name for name in self._served if name not in self._live)
        while len(self._served) > _MOST_TENANTS and (oldest := next(idle, None)) is not None:
            del self._served[oldest]
            idle = (name for name in self._served if name not in self._live)

    def charge(self, tenant: str, rows: int, samples: bool) -> None:
        """A step computed `rows` rows of the tenant; `samples`: the last gave a token."""
        self._served[tenant] += rows + (_OUTPUT_WEIGHT - 1) * samples

    def served(self, tenant: str) -> float:
        return self._served.get(tenant, 0.0)

    def add(self, sequence: Sequence) -> None:
        insort(self._queues.setdefault(sequence.request.tenant, []), sequence, key=rank)

    def remove(self, sequence: Sequence) -> None:
        tenant = sequence.request.tenant
        queue = self._queues[tenant]
        del queue[bisect_left(queue, sequence.rank, key=rank)]
        if not queue:
            del self._queues[tenant]

    def first(self) -> Sequence | None:
        """Whose turn it is."""
        heads = [queue[0] for queue in self._queues.values()]
        if len(heads) < 2:
            return heads[0] if heads else None
        return min(heads, key=self._turn)

    def _turn(self, sequence: Sequence) -> tuple[int, float, tuple[int, int]]:
        request = sequence.request
        return request.priority, self._served[request.tenant], sequence.age
