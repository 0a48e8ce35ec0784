"""Ratios by round, and the verdict on each bar."""

from __future__ import annotations

from typing import Any

import pytest
from ratios import (
    BARS,
    MODELS,
    Ratio,
    best_rival,
    judge,
    judge_bytes,
    judge_quality,
    ratio,
    spread,
    verdicts,
)

SMOL = MODELS[0]
DECODE = BARS[0]


def sections(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    rates = {"octavo a": {"decode": ours}, "llama.cpp a": {"decode": theirs}}
    return {"decode": {"rates": rates, "shares": {"bandwidth": [0.9, 0.7, 0.85]}}}


def test_rounds_are_divided_before_the_median() -> None:
    # medians alone would give 200 / 100 = 2; the noisy second round hit both sides alike
    assert ratio([200, 30, 300], [100, 20, 100]) == Ratio(2.0, 1.5, 3.0)


def test_rounds_that_one_side_lacks_are_left_out() -> None:
    assert ratio([4, 6, 8], [2, 2]).median == 2.5


def test_no_common_round_is_an_error() -> None:
    with pytest.raises(ValueError, match="no round"):
        ratio([], [1.0])


def test_spread_is_relative_to_the_median() -> None:
    assert spread([8, 10, 12]) == pytest.approx(0.4)
    assert spread([5]) == 0


@pytest.mark.parametrize(
    ("ours", "met", "miss"), [(150.0, True, ""), (149.0, False, "1%"), (75.0, False, "50%")]
)
def test_a_bar_is_met_at_its_goal_and_a_miss_has_a_size(ours: float, met: bool, miss: str) -> None:
    verdict = judge(DECODE, SMOL, sections([ours] * 3, [100.0] * 3))
    assert (verdict.met, verdict.miss, verdict.goal) == (met, miss, "1.5 times")


def test_goals_differ_by_model() -> None:
    record = sections([130.0], [100.0])
    assert [judge(DECODE, model, record).met for model in MODELS] == [False, True, True]


def test_a_section_or_rival_without_figures_is_no_verdict() -> None:
    assert judge(DECODE, SMOL, {}).met is None
    record = sections([1.0], [1.0])
    del record["decode"]["rates"]["llama.cpp a"]
    verdict = judge(DECODE, SMOL, record)
    assert verdict.met is None
    assert "llama.cpp a" in verdict.figure


def test_the_best_rival_counts() -> None:
    rates = {"x": {"x16": [1.0, 9.0]}, "y": {"x16": [6.0, 6.0]}, "z": {"decode": [100.0]}}
    assert best_rival(rates, ("x", "y", "z", "gone"), "x16") == "y"
    assert best_rival(rates, ("gone",), "x16") == ""


def test_shares_are_judged_by_their_median() -> None:
    bar = next(bar for bar in BARS if bar.task == "bandwidth")
    verdict = judge(bar, SMOL, sections([1.0], [1.0]))
    assert (verdict.met, verdict.figure) == (True, "85% (70% to 90%)")


@pytest.mark.parametrize(("ours", "met"), [(1020, True), (980, True), (1021, False), (979, False)])
def test_bytes_within_two_percent(ours: int, met: bool) -> None:
    assert judge_bytes(SMOL, "a", ours, 1000).met is met


@pytest.mark.parametrize(("low", "met"), [(-0.001, True), (0.0, True), (0.001, False)])
def test_quality_is_worse_only_when_the_whole_interval_is(low: float, met: bool) -> None:
    quality = {
        "ours": {"value": 0.22},
        "theirs": {"value": 0.2},
        "difference": {"value": 0.02, "low": low, "high": 0.04},
    }
    verdict = judge_quality(SMOL, "a", quality)
    assert verdict.met is met
    assert verdict.miss == ("" if met else "10%")


def test_every_bar_gives_a_line_for_every_model() -> None:
    for model in MODELS:
        assert [v.bar for v in verdicts(model, {})] == [bar.name for bar in BARS]
