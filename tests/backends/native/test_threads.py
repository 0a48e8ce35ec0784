"""The choice of threads at load: which count wins, what the receipt says, and that answers stay."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from octavo import _native
from octavo.backends.base import RuntimeConfig
from octavo.backends.native import backend, threads
from octavo.backends.native.executor import NativeExecutor
from support.native_models import llama_like, load_native, text_logits

CONFIG = RuntimeConfig(max_tokens=8, max_seqs=2, context=32)


def test_counts_double_up_to_what_is_usable() -> None:
    assert [threads.counts(n) for n in (1, 2, 3, 6, 8)] == [
        (1,), (1, 2), (1, 2, 3), (1, 2, 4, 6), (1, 2, 4, 8),
    ]  # fmt: skip


def test_more_threads_must_be_worth_it() -> None:
    assert threads.pick([(1, 1.00), (2, 0.98), (4, 0.99)]) == 1
    assert threads.pick([(1, 1.00), (2, 0.60), (4, 0.59)]) == 2
    assert threads.pick([(1, 1.00), (2, 0.60), (4, 0.50)]) == 4
    assert threads.pick([(1, 1.00), (2, 9.00)]) == 1


@pytest.mark.parametrize("fastest", [1, 2, 3])
def test_the_fastest_runs_and_the_receipt_says_why(
    fastest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {1: 0.002, 2: 0.0015, 3: 0.001}
    steps[fastest] = 0.0001
    order = iter([1, 2, 3])
    monkeypatch.setattr(threads, "shortest_step", lambda *_: steps[next(order)])
    monkeypatch.setattr(backend, "usable_now", lambda: 3)
    executor = load_native(llama_like(), CONFIG)
    assert executor.config.threads == executor.receipt().threads == fastest
    words = f"{fastest} thread{'s' * (fastest > 1)} chosen at load"
    note = f"{words} by the shortest step of one token (1: "
    assert any(line.startswith(note) for line in executor.receipt().notes)
    executor.close()


def test_a_given_count_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(threads, "shortest_step", refuse)
    executor = load_native(llama_like(), RuntimeConfig(context=32, threads=2))
    assert executor.receipt().threads == 2
    executor.close()


def test_steps_are_really_run_and_leave_no_trace() -> None:
    measured = load_native(llama_like(), CONFIG)
    given = load_native(
        llama_like(), RuntimeConfig(max_tokens=8, max_seqs=2, context=32, threads=1)
    )
    tokens = [5, 9, 2, 7, 11]
    assert np.array_equal(text_logits(measured, tokens, 8), text_logits(given, tokens, 8))
    native: _native.Executor = measured._open()
    assert threads.shortest_step(native, measured.layout, measured.config, 1) > 0
    measured.close()
    given.close()


# ---- which CPU each thread has ----

STEPS = 20


@contextmanager
def two_threads() -> Iterator[tuple[NativeExecutor, int]]:
    """An executor and the id of its second thread; the calling thread's CPUs are given back."""
    allowed = os.sched_getaffinity(0)
    before = {int(task.name) for task in Path("/proc/self/task").iterdir()}
    executor = load_native(llama_like(), RuntimeConfig(context=32, threads=2))
    try:
        text_logits(executor, [1, 2], 1)
        (worker,) = {int(task.name) for task in Path("/proc/self/task").iterdir()} - before
        yield executor, worker
    finally:
        executor.close()
        os.sched_setaffinity(0, allowed)


def cpu_of(thread: int) -> int:
    """Where it ran last: field 39 of its `stat`, whose second field may hold spaces."""
    fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return int(fields[36])


def put_together(threads: tuple[int, ...]) -> None:
    """On one CPU, and free to leave it."""
    allowed = os.sched_getaffinity(0)
    for cpus in ({min(allowed)}, allowed):
        for thread in threads:
            os.sched_setaffinity(thread, cpus)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
def test_threads_that_share_a_cpu_part() -> None:
    with two_threads() as (executor, worker):
        mine, allowed = threading.get_native_id(), os.sched_getaffinity(0)
        parted = 0
        for _ in range(STEPS):
            put_together((mine, worker))
            text_logits(executor, [1, 2], 1)
            parted += cpu_of(worker) != cpu_of(mine)
            assert os.sched_getaffinity(worker) == allowed
        assert parted > STEPS // 2  # the system may move either at any time


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
def test_threads_held_on_one_cpu_stay_and_answer() -> None:
    with two_threads() as (executor, worker):
        expected = text_logits(executor, [1, 2], 1)
        only = {max(os.sched_getaffinity(0))}
        for thread in (0, worker):
            os.sched_setaffinity(thread, only)
        for _ in range(STEPS):
            np.testing.assert_array_equal(text_logits(executor, [1, 2], 1), expected)
        assert os.sched_getaffinity(worker) == os.sched_getaffinity(0) == only
