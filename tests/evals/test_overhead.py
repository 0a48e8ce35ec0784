"""The engine's own time, by a clock that counts its readings."""

from __future__ import annotations

from itertools import count

import pytest

from octavo.evals.overhead import decoding, measure_overhead


def test_a_stretch_is_25_steps_and_the_best_counts() -> None:
    readings = iter([0.0, 50.0, 50.0, 75.0, 75.0, 175.0])
    (found,) = measure_overhead((2,), 3, lambda: next(readings))
    assert (found.sequences, found.best, found.median) == (2, 1.0, 2.0)
    assert found.budget == pytest.approx(110e-6)


def test_every_sequence_decodes_in_every_step_to_the_last_stretch() -> None:
    engine = decoding(3)
    for _ in range(75 * 25):
        assert len(engine.step()) == 3


def test_the_answers_do_not_end_while_they_are_timed() -> None:
    ticks = count()
    found = measure_overhead((1, 4), 75, lambda: float(next(ticks)))
    assert [one.best for one in found] == [1 / 25] * 2
