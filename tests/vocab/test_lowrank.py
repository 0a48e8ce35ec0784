"""Factors of a table: exact where the theorem says so, and better where it counts."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.errors import ConfigError, NumericsError
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import encode
from octavo.vocab.lowrank import Factors, factor, fit_up, rounded_twice, second_moment

RNG = np.random.default_rng(5)
TABLE = (RNG.standard_normal((300, 4)) @ RNG.standard_normal((4, 24))
         + 0.3 * RNG.standard_normal((300, 24))).astype(np.float32)  # fmt: skip
# Hidden states that lie mostly in a few directions, not those of the table.
MIX = RNG.standard_normal((24, 24)) * np.geomspace(4, 0.05, 24)
STATES = (RNG.standard_normal((500, 24)) @ MIX).astype(np.float32)
UNSEEN = (RNG.standard_normal((500, 24)) @ MIX).astype(np.float32)


@pytest.mark.parametrize("rank", [1, 5, 23])
def test_plain_error_is_the_sum_of_the_squared_singular_values_left_out(rank: int) -> None:
    """Eckart-Young: the damping of the identity is relative 1e-6, fp32 factors add less."""
    found = factor(TABLE, rank)
    singular = np.linalg.svd(TABLE.astype(np.float64), compute_uv=False)
    error = np.square(TABLE - found.rows @ found.shared, dtype=np.float64).sum()
    assert error == pytest.approx(np.square(singular[rank:]).sum(), rel=1e-5)
    assert found.lost == pytest.approx(error / np.square(singular).sum(), rel=1e-5)


@pytest.mark.parametrize("moment", [False, True])
def test_full_rank_loses_nothing(moment: bool) -> None:
    found = factor(TABLE, 24, second_moment(STATES) if moment else None)
    scale = np.abs(TABLE).max()
    # fp32 products through roots whose condition the states' spread fixes
    np.testing.assert_allclose(found.rows @ found.shared, TABLE, atol=1e-4 * scale)


@pytest.mark.parametrize("rank", [2, 6, 12])
def test_weighted_factors_err_less_on_states_that_were_not_seen(rank: int) -> None:
    def error(rows: np.ndarray, shared: np.ndarray) -> float:
        return float(np.square(UNSEEN @ TABLE.T - UNSEEN @ shared.T @ rows.T).sum())

    plain, weighted = factor(TABLE, rank), factor(TABLE, rank, second_moment(STATES))
    assert error(weighted.rows, weighted.shared) < error(plain.rows, plain.shared)


def test_rows_of_weight_err_less() -> None:
    weight = np.where(np.arange(300) < 20, 100.0, 1.0)
    even, favoured = factor(TABLE, 6), factor(TABLE, 6, None, weight)

    def error(rows: np.ndarray, shared: np.ndarray) -> float:
        return float(np.square(TABLE[:20] - rows[:20] @ shared).sum())

    assert error(favoured.rows, favoured.shared) < error(even.rows, even.shared)


def test_an_up_projection_makes_the_best_of_a_shared_table() -> None:
    """As little error as least squares leaves; the damping of 1e-6 costs less than its square."""
    rows = factor(TABLE, 8, second_moment(STATES)).rows
    up = fit_up(TABLE, rows)
    least = np.linalg.lstsq(rows.astype(np.float64), TABLE.astype(np.float64), rcond=None)[1].sum()
    error = np.square(TABLE - rows.astype(np.float64) @ up.T).sum()
    assert up.shape == (24, 8)
    assert least > 1  # else nothing was approximated
    assert error == pytest.approx(least, rel=1e-5)


def test_columns_that_are_stored_twice_have_twice_the_bits() -> None:
    """What is left of the table after rounding both: nothing but the error of rounding the rest and
    the other columns' own."""
    format = NumberFormat.parse("int4_g8")
    plain = factor(TABLE, 24, second_moment(STATES))
    twice = rounded_twice(plain, 8, format)
    assert twice.rows.shape == (300, 32)
    np.testing.assert_array_equal(twice.shared[24:], plain.shared[:8])
    stored = encode(twice.rows, format).dequantize()
    left = stored[:, :8] + stored[:, 24:] - plain.rows[:, :8]
    # A step is 1/8 of the largest of eight, and a value at the end that has no code errs by a whole
    # one; scales are rounded to fp16, which has 11 bits.
    bound = np.abs(plain.rows[:, :8]).max(axis=1) / 8 / 8 * (1 + 2**-9)
    assert (np.abs(left).max(axis=1) <= bound).all()
    np.testing.assert_array_equal(stored[:, 8:24], encode(plain.rows, format).dequantize()[:, 8:])

    def error(found: Factors) -> float:
        rows = encode(found.rows, format).dequantize()
        return float(np.square(UNSEEN @ TABLE.T - UNSEEN @ found.shared.T @ rows.T).sum())

    assert error(twice) < 0.3 * error(plain)
    assert rounded_twice(plain, 0, format) is plain


def test_bad_input() -> None:
    for rank in (0, 25):
        with pytest.raises(ConfigError, match=f"rank {rank} "):
            factor(TABLE, rank)
    broken = TABLE.copy()
    broken[3, 3] = np.nan
    with pytest.raises(NumericsError, match="not finite"):
        factor(broken, 3)
    with pytest.raises(NumericsError, match="not finite"):
        second_moment(np.full((2, 4), np.inf, np.float32))


def divergence(factors: Factors, states: np.ndarray) -> float:
    """Mean KL(whole || factored) in nats, in fp64."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p = log_softmax(states.astype(np.float64) @ TABLE.T)
    q = log_softmax((states.astype(np.float64) @ factors.shared.T) @ factors.rows.T)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def test_refinement_lowers_the_divergence_on_states_that_were_not_seen() -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from octavo.vocab.refine import refine

    soft = (np.float32(0.03) * RNG.standard_normal((4000, 24)) @ MIX).astype(np.float32)
    start = factor(TABLE, 6, second_moment(soft[:3000]))
    after = refine(start, TABLE, soft[:3000], None, 60)
    assert np.array_equal(after.rows, start.rows)
    assert divergence(after, soft[3000:]) < 0.995 * divergence(start, soft[3000:])
