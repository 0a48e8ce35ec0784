from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.rng import uniform, uniform_array
from octavo.engine.request import SamplingParams
from octavo.engine.sampling import (
    Counts,
    Draw,
    add_bias,
    candidates,
    penalize,
    pick,
    raw_logprobs,
    sample_reference,
)

NOWHERE = Draw(seed=0, position=0)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def logs(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities)).astype(np.float32)


def kept(logits: np.ndarray, **params: object) -> list[int]:
    return candidates(logits, SamplingParams(temperature=1.0, **params)).tokens.tolist()


def test_greedy_ties_go_to_the_lowest_id():
    assert sample_reference(f32(1, 3, 3, 2), SamplingParams(), None, NOWHERE).token == 1
    assert sample_reference(f32(1, 3, 3, 2), SamplingParams(), None, NOWHERE).margin == math.inf


def test_candidates_are_sorted_by_logit_then_id():
    assert kept(f32(1, 3, 2, 3)) == [1, 3, 2, 0]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.45}, [0]),
        ({"top_p": 0.55}, [0, 1]),  # the token that crosses p is in
        ({"top_p": 0.85}, [0, 1, 2]),
        ({"top_p": 1e-9}, [0]),
        ({"min_p": 0.35}, [0, 1, 2]),  # of the largest, 0.5: at least 0.175
        ({"min_p": 0.5}, [0, 1]),
        ({"min_p": 1.0}, [0]),
        ({"top_k": 3, "top_p": 0.6}, [0, 1]),  # 0.5 / 0.95 alone would not reach 0.6
        ({"top_k": 1, "top_p": 0.9, "min_p": 0.1}, [0]),
        ({"top_p": 0.85, "min_p": 0.5}, [0, 1]),
    ],
)
def test_cuts(params, expected):
    """Probabilities 0.5, 0.26, 0.19, 0.05."""
    assert kept(logs(0.5, 0.26, 0.19, 0.05), **params) == expected


def test_top_p_is_over_what_top_k_left():
    """0.5 of 0.76 is 0.66: with top_k 2, p = 0.6 keeps one token; without, two."""
    logits = logs(0.5, 0.26, 0.19, 0.05)
    assert kept(logits, top_k=2, top_p=0.6) == [0]
    assert kept(logits, top_p=0.6) == [0, 1]


def test_top_k_cuts_ties_by_id():
    assert kept(f32(1, 1, 1), top_k=2) == [0, 1]


def test_temperature_scales_before_the_cuts():
    logits = logs(0.6, 0.4)
    hot = candidates(logits, SamplingParams(temperature=2.0)).probabilities
    expected = np.sqrt([0.6, 0.4]) / np.sqrt([0.6, 0.4]).sum()
    np.testing.assert_allclose(hot, expected, rtol=4 * 2**-23)
    cold = SamplingParams(temperature=0.25, min_p=0.5)
    assert candidates(logits, cold).tokens.tolist() == [0]
    assert kept(logits, min_p=0.5) == [0, 1]


def test_bias_is_added_first():
    params = SamplingParams(logit_bias=((0, 5.0), (2, -100.0)))
    assert add_bias(f32(1, 2, 3), params).tolist() == [6, 2, -97]


COUNTS = Counts(prompt=np.array([1, 0, 0, 1]), output=np.array([0, 2, 0, 1]))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"repetition_penalty": 2.0}, [0.5, -4.0, 3.0, 2.0]),  # 1 in the prompt, -2 in the output
        ({"presence_penalty": 0.5}, [1.0, -2.5, 3.0, 3.5]),  # the output only, once
        ({"frequency_penalty": 0.5}, [1.0, -3.0, 3.0, 3.5]),  # the output only, each time
        (
            {"repetition_penalty": 2.0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
            [0.5, -6.0, 3.0, 0.5],
        ),
    ],
)
def test_penalties(params, expected):
    scores = penalize(f32(1, -2, 3, 4), SamplingParams(**params), COUNTS)
    assert scores.dtype == np.float32
    assert scores.tolist() == expected


def test_bias_comes_before_penalties():
    """A bias that lifts a logit above 0 makes the repetition penalty divide it."""
    params = SamplingParams(repetition_penalty=2.0, logit_bias=((0, 3.0), (1, 0.9)))
    counts = Counts(np.array([1, 0]), np.array([0, 0]))
    assert sample_reference(f32(-1, 0.2), params, counts, NOWHERE).token == 1  # 2 / 2 against 1.1


def test_logprobs_are_of_the_raw_distribution():
    logits = logs(0.5, 0.3, 0.2)
    params = SamplingParams(logit_bias=((2, 50.0),), logprobs=2)
    sampled = sample_reference(logits, params, None, NOWHERE)
    assert sampled.token == 2
    assert sampled.logprobs.logprob == pytest.approx(math.log(0.2), abs=2**-22)
    assert [token for token, _ in sampled.logprobs.top] == [0, 1]
    assert sampled.logprobs.top[1][1] == pytest.approx(math.log(0.3), abs=2**-22)


def test_logprobs_survive_large_logits():
    assert raw_logprobs(f32(1e4, 1e4), 0, 0).logprob == pytest.approx(-math.log(2))


@given(st.floats(0, 1, exclude_max=True))
def test_the_walk_takes_the_interval_that_holds_the_draw(draw):
    probabilities = np.array([0.5, 0.25, 0.125, 0.125])
    edges = np.array([0.5, 0.75, 0.875])
    choices = candidates(logs(*probabilities), SamplingParams(temperature=1.0))
    token, margin = pick(choices, draw)
    nearest = np.abs(edges - draw).min()
    assert margin == pytest.approx(nearest, abs=2**-22)
    if nearest > 2**-22:
        assert token == int((draw >= edges).sum())


def test_margin_counts_the_cuts_too():
    """Where top_p or min_p all but touches a boundary, another rounding may keep another set."""
    logits = logs(0.5, 0.25, 0.25)
    near_p = candidates(logits, SamplingParams(temperature=1.0, top_p=0.75))
    near_min = candidates(logits, SamplingParams(temperature=1.0, min_p=0.5))
    assert near_p.margin < 2**-20
    assert near_min.margin < 2**-20
    assert candidates(logits, SamplingParams(temperature=1.0, top_p=0.6)).margin > 0.09


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("choice", [0, 1])
def test_draws_follow_the_distribution(choice):
    """Chi-square with 4 degrees of freedom; 23.5 is exceeded once in 10,000 fair runs."""
    probabilities = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    choices = candidates(logs(*probabilities), SamplingParams(temperature=1.0))
    draws = uniform_array(1234, np.arange(20_000), choice)
    tokens = [pick(choices, float(draw))[0] for draw in draws]
    assert chi_square(np.bincount(tokens, minlength=5), probabilities) < 23.5
    wrong = np.array([0.37, 0.33, 0.15, 0.1, 0.05])
    assert chi_square(np.bincount(tokens, minlength=5), wrong) > 23.5


def test_draws_after_cuts_follow_what_is_left():
    choices = candidates(logs(0.4, 0.3, 0.2, 0.1), SamplingParams(temperature=1.0, top_k=2))
    draws = uniform_array(99, np.arange(10_000))
    tokens = [pick(choices, float(draw))[0] for draw in draws]
    assert chi_square(np.bincount(tokens, minlength=2), np.array([4 / 7, 3 / 7])) < 15.2  # 1e-4


def test_a_draw_depends_on_seed_position_and_choice_alone():
    logits = np.random.default_rng(0).normal(size=500).astype(np.float32)
    params = SamplingParams(temperature=1.5)
    tokens = {
        draw: sample_reference(logits, params, None, draw).token
        for draw in (Draw(1, 5), Draw(2, 5), Draw(1, 6), Draw(1, 5, 1))
    }
    assert len(set(tokens.values())) == 4
    for draw, token in tokens.items():
        assert sample_reference(logits, params, None, draw).token == token
        choices = candidates(logits, params)
        assert pick(choices, uniform(*draw))[0] == token
