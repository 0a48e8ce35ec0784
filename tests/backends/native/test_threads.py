"""The choice of threads at load: which count wins, what the receipt says, and that answers stay."""

from __future__ import annotations

import numpy as np
import pytest

from octavo import _native
from octavo.backends.base import RuntimeConfig
from octavo.backends.native import backend, threads
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
