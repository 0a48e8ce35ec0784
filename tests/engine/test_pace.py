from __future__ import annotations

import pytest

from octavo.core.errors import InternalError
from octavo.engine.pace import STEP_SECONDS, Pace


def steps(pace: Pace, seconds_per_row: float, count: int) -> list[int]:
    """What is chosen after each of `count` full steps of one sequence."""
    chosen = []
    for _ in range(count):
        pace.note(pace.rows + 1, 1, (pace.rows + 1) * seconds_per_row, full=True)
        chosen.append(pace.rows)
    return chosen


def test_it_starts_small_and_finds_the_rows_that_fit():
    assert Pace(512).rows == 64
    assert steps(Pace(512), 0.001, 3) == [240, 240, 240]
    assert steps(Pace(512), 0.00001, 3) == [256, 512, 512]
    assert steps(Pace(512), 0.01, 3) == [16, 16, 16]
    assert steps(Pace(512), 1.0, 2) == [16, 16]  # below that, a step is longer than wanted


@pytest.mark.parametrize("most", [1, 7, 40])
def test_never_more_than_a_step_holds(most):
    pace = Pace(most)
    assert pace.rows == most
    assert steps(pace, 1e-9, 2) == [most, most]
    assert steps(pace, 1.0, 1) == [min(most, 16)]


def test_only_a_full_step_lets_it_grow():
    pace = Pace(512)
    pace.note(20, 1, 0.001, full=False)
    assert pace.rows == 64
    pace.note(65, 1, 0.001, full=True)
    assert pace.rows == 256


def test_a_short_step_that_is_quick_does_not_make_it_smaller():
    """17 rows cost nearly what 64 do: weights are read all the same."""
    pace = Pace(512)
    pace.note(17, 1, 0.2, full=False)
    assert pace.rows == 64
    pace.note(17, 1, 0.5, full=False)
    assert pace.rows == 16


def test_one_disturbed_step_costs_a_factor_of_four_at_most():
    pace = Pace(512)
    steps(pace, STEP_SECONDS / 600, 3)
    assert pace.rows == 512
    pace.note(513, 1, 100.0, full=True)
    assert pace.rows == 128


def test_a_clock_that_stands_still_is_no_failure():
    pace = Pace(512)
    pace.note(65, 1, 0.0, full=True)
    assert pace.rows == 256


def test_decodes_are_paid_first():
    pace = Pace(512)
    pace.note(160, 60, 0.16, full=True)  # 1 ms a row: 250 rows, 60 of them decodes
    assert pace.rows == 176


def test_a_fixed_pace_stays():
    pace = Pace.fixed(100)
    assert steps(pace, 1e-9, 2) + steps(pace, 9.0, 2) == [100] * 4
    pace.note(7, 1, 1e9, full=False)
    assert pace.rows == 100


def test_what_makes_no_sense_is_our_bug():
    for most, seconds in ((0, 0.25), (8, 0.0), (8, float("nan"))):
        with pytest.raises(InternalError):
            Pace(most, seconds)
