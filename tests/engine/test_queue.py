from __future__ import annotations

from octavo.engine.blocks import KvPool
from octavo.engine.queue import WaitingQueue
from octavo.engine.request import Request, SamplingParams
from octavo.engine.sequence import Sequence
from support.fakes import layout_of

POOL = KvPool(layout_of((None,), 4), (4,), 4)


def sequence(arrival: int, tenant: str = "", priority: int = 0) -> Sequence:
    request = Request(str(arrival), (1,), SamplingParams(), tenant=tenant, priority=priority)
    return Sequence(request, 0, (arrival, 0), [1], POOL.lease(), frozenset(), 9, 0)


def drain(queue: WaitingQueue, rows: int = 0) -> list[str]:
    """The order in which all run, each tenant charged `rows` for each."""
    order = []
    while (first := queue.first()) is not None:
        queue.remove(first)
        queue.charge(first.request.tenant, rows, samples=False)
        order.append(first.request.id)
    return order


def filled(*sequences: Sequence) -> WaitingQueue:
    queue = WaitingQueue()
    for item in sequences:
        queue.begin(item.request.tenant)
        queue.add(item)
    return queue


def test_one_tenant_is_first_come_first_served():
    assert drain(filled(sequence(2), sequence(0), sequence(1)), rows=5) == ["0", "1", "2"]


def test_priority_goes_before_age_and_before_fairness():
    queue = filled(sequence(0, "a"), sequence(1, "b", priority=-1), sequence(2, "a", priority=-1))
    queue.charge("b", 100, samples=False)
    assert drain(queue) == ["2", "1", "0"]


def test_tenants_take_turns_by_what_they_were_served():
    many = [sequence(i, "greedy") for i in range(4)]
    queue = filled(*many, sequence(4, "small"), sequence(5, "small"))
    assert drain(queue, rows=10) == ["0", "4", "1", "5", "2", "3"]


def test_a_sampled_row_counts_twice():
    queue = filled(sequence(0, "a"))
    queue.charge("a", 3, samples=True)
    assert queue.served("a") == 4


def test_a_pause_gives_no_credit():
    queue = filled(sequence(0, "busy"))
    queue.charge("busy", 1000, samples=False)
    queue.begin("new")
    assert queue.served("new") == 1000
    queue.end("busy")
    queue.begin("busy")
    assert queue.served("busy") == 1000  # and what it had is not forgiven


def test_iteration_and_length_cover_all_tenants():
    queue = filled(sequence(1, "a"), sequence(0, "b"), sequence(2, "b", priority=-5))
    assert [s.request.id for s in queue] == ["2", "0", "1"]
    assert len(queue) == 3
