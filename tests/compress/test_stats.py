"""Sums over rows against their definitions, in parts and whole."""

from __future__ import annotations

import pytest
import torch

from octavo.compress.base import LinearStats, Needs
from octavo.compress.stats import StatsGatherer, rescaled, sampled_sequences

ALL = Needs.ABSMAX | Needs.MEAN_ABS | Needs.HESSIAN | Needs.SAMPLES


def rows(n: int, width: int = 12) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n))


def gathered(needs: Needs, *parts: torch.Tensor) -> LinearStats:
    gatherer = StatsGatherer(needs, 12)
    for n, part in enumerate(parts):
        gatherer.add(part, sampled=n % 2 == 0)
    return gatherer.stats()


def test_statistics_are_what_their_names_say() -> None:
    parts = rows(5), rows(7), rows(0), rows(30)
    x = torch.cat(parts).double()
    found = gathered(ALL, *parts)
    assert found.tokens == 42
    assert found.absmax is not None
    assert torch.equal(found.absmax, x.abs().amax(0).float())
    assert found.mean_abs is not None
    assert torch.allclose(found.mean_abs.double(), x.abs().mean(0), rtol=2**-23)
    # each of n products and sums rounds once: n * eps of the sum of magnitudes
    bound = 2 / 42 * 44 * 2**-24 * (x.abs().T @ x.abs())
    assert found.hessian is not None
    assert ((found.hessian.double() - 2 / 42 * x.T @ x).abs() <= bound).all()
    assert found.samples is not None
    assert torch.equal(found.samples, parts[0])  # the third is empty, the others not sampled


def test_nothing_is_gathered_that_was_not_asked_for() -> None:
    found = gathered(Needs.ABSMAX, rows(5))
    assert (found.mean_abs, found.hessian, found.samples) == (None, None, None)


def test_without_rows_there_are_no_statistics() -> None:
    assert gathered(ALL, rows(0)) == LinearStats()


def test_rescaled_statistics_are_those_of_divided_inputs() -> None:
    scale = torch.exp2(torch.arange(12) % 5 - 2.0)  # powers of two: every division is exact
    before = rescaled(gathered(ALL, rows(20)), scale)
    after = gathered(ALL, rows(20) / scale)
    for name in ("absmax", "mean_abs", "hessian", "samples"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name


@pytest.mark.parametrize(("count", "length", "kept"), [(8, 2048, 2), (3, 100, 3), (5, 9000, 1)])
def test_samples_keep_whole_sequences_spread_over_all(count: int, length: int, kept: int) -> None:
    found = sampled_sequences(count, length)
    assert len(found) == kept
    assert found <= set(range(count))


def test_the_hessian_does_not_depend_on_how_rows_arrive() -> None:
    x = rows(100)
    whole = gathered(Needs.HESSIAN, x).hessian
    parts = gathered(Needs.HESSIAN, *x.split([1, 12, 30, 57])).hessian
    assert whole is not None
    assert parts is not None
    assert torch.equal(whole, parts)
