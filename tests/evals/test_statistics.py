"""Intervals cover what they claim, also when neighbouring tokens are correlated."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.evals.statistics import Blocks, estimate, wilson

LENGTH, TEXTS = 2048, 200


def correlated(rng: np.random.Generator, length: int, rho: float) -> np.ndarray:
    """A stationary first-order process with mean 0 and variance 1."""
    noise = rng.standard_normal(length) * np.sqrt(1 - rho * rho)
    values = np.empty(length)
    values[0] = rng.standard_normal()
    for i in range(1, length):
        values[i] = rho * values[i - 1] + noise[i]
    return values


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_the_means_interval_covers_the_truth(rho: float) -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(TEXTS):
        interval = Blocks(LENGTH).mean(3 + correlated(rng, LENGTH, rho))
        hits += interval.low <= 3 <= interval.high
    # 95 % nominal; the binomial's own 4-sigma band over TEXTS trials, and 2 % for 32 blocks only
    slack = 4 * np.sqrt(0.95 * 0.05 / TEXTS) + 0.02
    assert abs(hits / TEXTS - 0.95) < slack


def test_single_token_blocks_would_not_cover_correlated_text() -> None:
    rng = np.random.default_rng(1)
    values = [correlated(rng, LENGTH, 0.6) for _ in range(8)]
    alone = np.mean([Blocks(LENGTH, size=1).mean(v).error for v in values])
    blocked = np.mean([Blocks(LENGTH).mean(v).error for v in values])
    # the true ratio is sqrt((1 + rho) / (1 - rho)) = 2
    assert 1.7 < blocked / alone < 2.2


def test_error_of_independent_values_is_the_textbooks() -> None:
    values = np.random.default_rng(2).standard_normal(8192)
    expected = values.std(ddof=1) / np.sqrt(len(values))
    # 128 blocks and 1000 replicates leave about 1 / sqrt(2 * 128) = 6 % noise; four sigma
    assert Blocks(8192).mean(values).error == pytest.approx(expected, rel=0.25)


def test_the_quantiles_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(100):
        interval = Blocks(LENGTH).quantile(rng.uniform(size=LENGTH), 0.9)
        hits += interval.low <= 0.9 <= interval.high
    assert hits >= 85


def test_unit_weights_give_numpys_quantile() -> None:
    from octavo.evals.statistics import _weighted_quantile

    values = np.sort(np.random.default_rng(4).standard_normal(101))
    for q in (0.0, 0.01, 0.5, 0.987, 1.0):
        ones = np.ones(101, np.int64)
        assert _weighted_quantile(values, ones, q) == pytest.approx(np.quantile(values, q))


def test_integer_weights_repeat_values() -> None:
    from octavo.evals.statistics import _weighted_quantile

    values = np.asarray([1.0, 2.0, 5.0])
    weights = np.asarray([2, 0, 3])
    repeated = np.repeat(values, weights)
    for q in (0.0, 0.2, 0.3, 0.5, 1.0):
        assert _weighted_quantile(values, weights, q) == pytest.approx(np.quantile(repeated, q))


def test_a_constant_has_no_spread() -> None:
    interval = Blocks(100).mean(np.full(100, 0.5))
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))
    assert interval.error == pytest.approx(0, abs=1e-15)


def test_fixed_seed_repeats() -> None:
    values = np.random.default_rng(5).standard_normal(500)
    assert Blocks(500).mean(values) == Blocks(500).mean(values)


def test_one_token_still_answers() -> None:
    assert Blocks(1).mean(np.asarray([2.0])).value == 2.0


def test_no_tokens_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        Blocks(0)


def test_infinite_replicates_give_an_infinite_interval() -> None:
    interval = estimate(np.inf, np.asarray([1.0, np.inf]))
    assert (interval.low, interval.high) == (-np.inf, np.inf)


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (1, 10), (82, 164), (7, 7)])
def test_wilsons_interval_ends_where_the_score_test_does(hits: int, trials: int) -> None:
    # by definition: at its ends p the hits lie z standard deviations sqrt(p (1 - p) / n) from p n
    found = wilson(hits, trials)
    assert found.value == hits / trials
    assert 0 <= found.low <= found.value <= found.high <= 1
    for end in (found.low, found.high):
        if end != found.value:
            assert abs(hits / trials - end) == pytest.approx(
                1.959963985 * np.sqrt(end * (1 - end) / trials), rel=1e-8
            )


@pytest.mark.parametrize(("hits", "trials"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(hits: int, trials: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson(hits, trials)
