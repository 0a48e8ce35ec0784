"""Wanda and magnitude: the formula by hand, who competes with whom, and where both agree."""

from __future__ import annotations

import pytest
import torch

from octavo.compress.base import LinearStats, Needs
from octavo.compress.methods.magnitude import Magnitude
from octavo.compress.methods.wanda import Wanda
from octavo.compress.stats import StatsGatherer
from octavo.core.errors import ConfigError

NOTHING = LinearStats()


def stats_of(X: torch.Tensor) -> LinearStats:
    gatherer = StatsGatherer(Needs.MEAN_SQUARE, X.shape[1])
    gatherer.add(X[:3], False)
    gatherer.add(X[3:], False)
    return gatherer.stats()


def test_the_score_by_hand() -> None:
    # Figure 1's idea: a small weight on a large input outlives a large one on a small input.
    X = torch.tensor([[3.0, 0.0, 1.0, 0.0], [4.0, 2.0, 0.0, 0.0], [0, 0, 0, 0], [0, 0, 0, 1.0]])
    W = torch.tensor([[4.0, -1.0, 1.0, 3.0], [-2.0, 3.0, -5.0, 1.0]])
    norms = torch.tensor([5.0, 2.0, 1.0, 1.0])
    score = Wanda().score(W, stats_of(X))
    # Scores lack the factor sqrt(tokens) = 2; one rounding of the mean, the root and the product.
    torch.testing.assert_close(2 * score, W.abs() * norms, rtol=2**-22, atol=0)
    assert Wanda().mask(W, stats_of(X)).tolist() == [
        [True, False, False, True],
        [True, True, False, False],
    ]


def test_rows_compete_only_with_themselves() -> None:
    random = torch.Generator().manual_seed(0)
    W, X = torch.randn(6, 32, generator=random), torch.randn(40, 32, generator=random)
    louder = W * torch.tensor([1.0, 100, 1, 1, 0.01, 1])[:, None]
    stats = stats_of(X)
    assert torch.equal(Wanda().mask(W, stats), Wanda().mask(louder, stats))
    by_tensor = Wanda(scope="tensor")
    assert not torch.equal(by_tensor.mask(W, stats), by_tensor.mask(louder, stats))
    assert ((~Wanda(0.25).mask(W, stats)).sum(1) == 8).all()


def test_with_inputs_of_equal_norm_wanda_is_magnitude_by_row() -> None:
    W = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    stats = LinearStats(tokens=9, mean_square=torch.full((64,), 0.25))
    for pattern in ("", "2:4", "4x8"):
        ours = Wanda(pattern=pattern).mask(W, stats)
        assert torch.equal(ours, Magnitude(pattern=pattern, scope="row").mask(W, NOTHING))


@pytest.mark.parametrize("method", [Magnitude, Wanda])
def test_sparsity_0_keeps_everything(method: type[Magnitude] | type[Wanda]) -> None:
    stats = LinearStats(tokens=1, mean_square=torch.zeros(16))
    assert method(sparsity=0.0).mask(torch.zeros(4, 16), stats).all()


def test_magnitude_drops_the_smallest_of_the_tensor() -> None:
    W = torch.tensor([[1.0, -8.0, 3.0, 7.0], [-2.0, 4.0, -6.0, 5.0]])
    assert Magnitude().mask(W, NOTHING).tolist() == [
        [False, True, False, True],
        [False, False, True, True],
    ]
    assert torch.equal(Magnitude(threshold=4.0).mask(W, NOTHING), W.abs() >= 4)
    assert Magnitude(pattern="1:2").mask(W, NOTHING).tolist() == [
        [False, True, False, True],
        [False, True, True, False],
    ]


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        Magnitude(threshold=-1.0)
    with pytest.raises(ConfigError, match="without a pattern"):
        Magnitude(threshold=1.0, pattern="2:4")
    with pytest.raises(ConfigError, match="row or tensor"):
        Wanda(scope="all")  # type: ignore[arg-type]
