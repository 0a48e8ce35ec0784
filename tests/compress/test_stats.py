"""Sums over rows against their definitions, in parts and whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo import _native
from octavo.compress.base import LinearStats, Needs
from octavo.compress.stats import StatsGatherer, products, rescaled, sampled_sequences

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


def halves_of(width: int, *parts: torch.Tensor) -> torch.Tensor:
    summed = products(width, halves=True)
    for part in parts:
        summed.add(part)
    return summed.sum()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("width", "lengths"), [(12, (5, 7, 30)), (33, (1,)), (200, (1024, 3, 1500))]
)
def test_products_in_halves_are_those_of_rounded_rows(
    width: int, lengths: tuple[int, ...], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(_native, "gram_supported", lambda: False)
    parts = [rows(n, width) for n in lengths]
    found = halves_of(width, *parts)
    x = torch.cat(parts).bfloat16().double()
    # vdpbf16ps rounds both products of a pair and their sums: at most 2 eps for each row
    bound = 2 * (sum(lengths) + len(lengths)) * 2**-24 * (x.abs().T @ x.abs())
    assert ((found.double() - x.T @ x).abs() <= bound).all()
    assert torch.equal(found, found.T)


def test_products_in_halves_do_not_depend_on_threads() -> None:
    parts, before = [rows(700, 300), rows(900, 300)], torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(halves_of(300, *parts))
    torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.skipif(not _native.gram_supported(), reason="no AVX-512 BF16")
def test_products_in_halves_refuse_what_does_not_fit() -> None:
    pairs = np.zeros(_native.gram_words(12), np.uint32)
    x, square = np.zeros((4, 12), np.float32), np.zeros((12, 12), np.float32)
    for at in (-2, 1, 1022):
        with pytest.raises(ValueError, match="even"):
            _native.gram_pack(x, at, pairs)
    with pytest.raises(ValueError, match="gram_words"):
        _native.gram_pack(np.zeros((4, 40), np.float32), 0, pairs)
    for n, task in ((513, 0), (-1, 0), (2, 1), (2, -1)):
        with pytest.raises(ValueError, match="gram_tasks"):
            _native.gram_add(pairs, n, task, square)
