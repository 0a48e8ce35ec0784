"""KIVI's grids, and which of them a query reads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from octavo.formats.kivi import (
    KIVI_GROUP,
    WINDOW,
    old_key,
    old_value,
    round_keys,
    round_values,
)
from octavo.formats.kv import kv_head_bytes

F32 = npt.NDArray[np.float32]
DIM = 64


def normal(seed: int, tokens: int = 2 * KIVI_GROUP) -> F32:
    x = np.random.default_rng(seed).standard_normal((tokens, 2, DIM))
    return x.astype(np.float32)


@pytest.mark.parametrize("bits", [2, 4])
def test_values_are_within_half_a_step_of_their_token_and_group(bits: int) -> None:
    x = normal(1)
    error = np.abs(round_values(x, bits, np) - x).reshape(-1, KIVI_GROUP)
    check_grid(error, x.reshape(-1, KIVI_GROUP), bits)


@pytest.mark.parametrize("bits", [2, 4])
def test_keys_are_within_half_a_step_of_their_channel(bits: int) -> None:
    x = normal(2)
    error = np.abs(round_keys(x, bits, np) - x)
    turned = [y.reshape(2, KIVI_GROUP, -1).swapaxes(1, 2).reshape(-1, KIVI_GROUP)
              for y in (error, x)]  # fmt: skip
    check_grid(*turned, bits)


def check_grid(error: F32, x: F32, bits: int) -> None:
    """Half a step, and what fp16 loses of step (times the code) and least value."""
    least, most = x.min(1), x.max(1)
    step = (most - least) / (2**bits - 1)
    lost = 2.0**-11 * (np.abs(least) + (most - least)) + 2.0**-24
    assert (error.max(1) <= step / 2 + 2 * lost).all()
    assert (error.max(1) > step / 4).any()  # it does round


def test_equal_values_are_kept() -> None:
    x = np.full((KIVI_GROUP, 1, DIM), 1.5, np.float32)
    assert (round_keys(x, 2, np) == x).all()
    assert (round_values(x, 2, np) == x).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_torch_gives_the_bits_of_numpy(bits: int) -> None:
    torch = pytest.importorskip("torch")
    x = normal(3)
    for rounding in (round_keys, round_values):
        found = rounding(torch.from_numpy(x), bits, torch).numpy()
        assert (found == rounding(x, bits, np)).all()


def test_four_levels_of_a_large_channel_spare_the_others() -> None:
    """Section 3.2: with four channels far from 0, keys by token lose what keys by channel keep; on
    equal channels neither is better by much."""
    plain = normal(4, 8 * KIVI_GROUP)
    offset = plain.copy()
    offset[..., [3, 17, 30, 60]] += 20.0
    by_channel, by_token = (error(offset, rounding) for rounding in (round_keys, round_values))
    assert by_channel < 0.75 < 2.0 < by_token
    even = [error(plain, rounding) for rounding in (round_keys, round_values)]
    assert max(even) < 1.1 * min(even)


def error(x: F32, rounding: object) -> float:
    """Root mean square of what 2 bits change of the scores of random queries, per key's size."""
    q = np.random.default_rng(5).standard_normal((16, 2, DIM)).astype(np.float32)
    lost = rounding(x, 2, np) - x  # type: ignore[operator]
    return float(np.sqrt(np.square(np.einsum("nhd,mhd->hnm", q, lost)).mean() / DIM))


def test_the_window_moves_by_groups_for_keys_and_by_tokens_for_values() -> None:
    at = np.arange(3 * WINDOW)
    old_k, old_v = old_key(at[:, None], at[None, :]), old_value(at[:, None], at[None, :])
    for i in at:
        assert old_v[i].sum() == max(0, i + 1 - WINDOW)
        recent = i + 1 - old_k[i].sum()
        assert (
            recent == i + 1
            if i + 1 < WINDOW + KIVI_GROUP
            else recent in range(WINDOW, WINDOW + KIVI_GROUP)
        )
        assert old_k[i].sum() % KIVI_GROUP == 0
        assert not old_k[i, old_k[i].sum() :].any()
    assert (old_k[1:] >= old_k[:-1]).all()  # what is old stays old
    assert (old_v[1:] >= old_v[:-1]).all()


def test_two_bits_cost_three() -> None:
    """With a step and a minimum of 16 bits each for 32 elements."""
    assert 8 * kv_head_bytes("kivi2", 64) == 3 * 64
    assert 8 * kv_head_bytes("kivi4", 128) == 5 * 128
