"""Hadamard matrices of the orders that models have, and rotations of any."""

from __future__ import annotations

import pytest
import torch

from octavo.compress.methods.hadamard import hadamard, is_prime, random_rotation

KNOWN = (1, 2, 4, 8, 12, 20, 24, 28, 36, 44, 60, 64, 72, 76, 108, 128, 576, 640, 896, 960)


@pytest.mark.parametrize("n", KNOWN)
def test_rows_are_signs_and_orthogonal(n: int) -> None:
    H = hadamard(n)
    assert H is not None
    assert torch.equal(H.abs(), torch.ones_like(H))
    assert torch.equal(H @ H.T, n * torch.eye(n, dtype=H.dtype))  # integers: exact


@pytest.mark.parametrize("n", [3, 6, 7, 18, 92])
def test_orders_without_a_construction_say_so(n: int) -> None:
    assert hadamard(n) is None


@pytest.mark.parametrize("n", [7, 18, 64, 576])
def test_rotations_are_orthogonal_and_follow_their_seed(n: int) -> None:
    first, again, other = (
        random_rotation(n, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    # Each entry is a sum of n products of size 1 / n: n of them round by 2^-53 of that.
    gap = (first @ first.T - torch.eye(n, dtype=torch.float64)).abs().max()
    assert gap <= n * 2**-50
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_outlier_is_spread_evenly() -> None:
    x = torch.zeros(576, dtype=torch.float64)
    x[100] = 24.0
    spread = x @ random_rotation(576, torch.Generator().manual_seed(0))
    assert torch.allclose(spread.abs(), torch.ones_like(spread))


def test_primes() -> None:
    assert [n for n in range(30) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
