"""AWQ's motivating experiment: the inputs that matter show in the activations."""

from __future__ import annotations

import pytest
import torch

from octavo.compress.base import LinearStats
from octavo.compress.methods.awq_salient import AwqSalient
from octavo.core.errors import ConfigError, FormatError
from octavo.formats import rtn
from octavo.formats.number_format import FP32, NumberFormat

LOUD = [7, 100, 201]


def case(loud: float = 50.0) -> tuple[torch.Tensor, torch.Tensor, LinearStats]:
    """W [64, 256] and X [512, 256], three of whose inputs are `loud` times the others; their
    weights are of middling size."""
    random = torch.Generator().manual_seed(0)
    W = torch.randn(64, 256, generator=random)
    X = torch.randn(512, 256, generator=random)
    W[:, LOUD] *= W.norm(dim=0).median() / W[:, LOUD].norm(dim=0)
    X[:, LOUD] *= loud
    return W, X, LinearStats(tokens=512, mean_abs=X.abs().mean(0))


def error(method: AwqSalient) -> float:
    W, X, stats = case()
    Q = torch.from_numpy(method.encode(W, FP32, stats).dequantize())
    return float((X @ (W - Q).T).square().sum())


def test_the_loud_inputs_stay_in_bf16_and_the_rest_is_rounded() -> None:
    W, _, stats = case()
    Q = torch.from_numpy(AwqSalient(share=0.01).encode(W, FP32, stats).dequantize())
    rounded = torch.from_numpy(rtn.encode(W.numpy(), NumberFormat.parse("int3_g128")).dequantize())
    assert torch.equal(Q[:, LOUD], W[:, LOUD].bfloat16().float())
    quiet = [i for i in range(256) if i not in LOUD]
    assert torch.equal(Q[:, quiet], rounded[:, quiet])


def test_activations_choose_better_than_weights_and_weights_no_better_than_chance() -> None:
    by_activations = error(AwqSalient(by="activations"))
    by_weights, at_random = error(AwqSalient(by="weights")), error(AwqSalient(by="random"))
    assert by_activations < min(by_weights, at_random) / 10
    # Three of 256 inputs, none of them loud: less than a tenth of the error either way.
    assert by_weights == pytest.approx(at_random, rel=0.1)


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.001, 1), (0.01, 3), (1.0, 256)])
def test_shares_round_up(share: float, kept: int) -> None:
    W, _, stats = case()
    assert len(AwqSalient(share=share).salient(W, stats)) == kept


def test_pruned_weights_stay_zero() -> None:
    W, _, stats = case()
    mask = torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    Q = torch.from_numpy(AwqSalient().encode(W, FP32, stats, mask).dequantize())
    assert not Q[~mask].any()


def test_what_it_cannot_be_told() -> None:
    W, _, stats = case()
    with pytest.raises(FormatError, match="format fp32"):
        AwqSalient().encode(W, NumberFormat.parse("int3_g128"), stats)
    with pytest.raises(ConfigError, match="activations, weights or random"):
        AwqSalient(by="luck")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 to 1"):
        AwqSalient(share=2)
    with pytest.raises(FormatError):
        AwqSalient(format="int9_g2")
