"""SmoothQuant against its closed form and a planted outlier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.compress.base import LinearStats
from octavo.compress.methods.smoothquant import SmoothQuant
from octavo.core.errors import ConfigError
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import fake_quantize
from octavo.spec.decoder import Role
from support.toy_block import ToyBlock, stats_from, toy_block, toy_hidden, toy_spec, toy_stats

INT8 = NumberFormat.parse("int8_tensor")
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ULP = 2.0**-23


def planned(block: ToyBlock, alpha: float = 0.5) -> dict[str, Tensor]:
    stats = toy_stats(block, toy_hidden(6, 1))
    return {fold.producer.part: fold.scale for fold in SmoothQuant(alpha).plan(block, stats, INT8)}


def shared_max(block: ToyBlock, *parts: str) -> Tensor:
    weights = [block.weight(Role(part, 0)) for part in parts]
    return torch.cat(weights).abs().amax(0)


def test_half_way_input_and_weights_are_equally_large() -> None:
    """max|X_j / s_j| = sqrt(max|X_j| max|W_j|) = max|W_j s_j|, over all readers of the input."""
    block = toy_block(toy_spec(), 0, {5: 100.0})
    scales, stats = planned(block), toy_stats(block, toy_hidden(6, 1))
    for norm, readers in (("attn_norm", ("q", "k", "v")), ("mlp_norm", ("gate", "up"))):
        absmax = stats[Role(readers[0], 0)].absmax
        assert absmax is not None
        max_X, max_W = absmax / scales[norm], shared_max(block, *readers) * scales[norm]
        # Two square roots, two quotients and a product, each rounded to half a unit.
        assert torch.allclose(max_X, max_W, rtol=5 * ULP, atol=0)


def test_the_ends_flatten_one_side() -> None:
    block = toy_block(toy_spec(), 0, {5: 100.0})
    flat = shared_max(block, "q", "k", "v") * planned(block, 0.0)["attn_norm"]
    assert torch.allclose(flat, torch.ones(64), rtol=3 * ULP, atol=0)
    absmax = toy_stats(block, toy_hidden(6, 1))[Role("q", 0)].absmax
    assert absmax is not None
    flat = absmax / planned(block, 1.0)["attn_norm"]
    assert torch.allclose(flat, torch.ones(64), rtol=3 * ULP, atol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("bias", [False, True])
def test_the_block_computes_the_same(alpha: float, bias: bool) -> None:
    block, hidden = toy_block(toy_spec(kv_heads=2, bias=bias), 2, {9: 30.0}), toy_hidden(4, 3)
    folds = SmoothQuant(alpha).plan(block, toy_stats(block, hidden), INT8)
    assert [fold.producer.part for fold in folds] == ["attn_norm", "mlp_norm"]
    before, after = block.forward(hidden), block.folded(folds).forward(hidden)
    assert not torch.equal(before, after)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


def w8a8_error(X: Tensor, W: Tensor) -> float:
    """Squared error of the product with both sides in int8, one scale per tensor."""
    product = fake_quantize(X, INT8, torch) @ fake_quantize(W, INT8, torch).T
    return float((product - X @ W.T).square().sum())


def test_a_planted_outlier_is_recovered_best_half_way() -> None:
    """methods.md section 8: improvements of about 1.3, 3.5, 5.7, 3.2 and 1.2."""
    gains: dict[float, list[float]] = {alpha: [] for alpha in ALPHAS}
    for seed in range(4):
        random = torch.Generator().manual_seed(seed)
        X, W = (torch.randn(256, 256, generator=random) for _ in range(2))
        X[:, 17] *= 100
        for alpha in ALPHAS:
            s = SmoothQuant(alpha).scale(X.abs().amax(0), W.abs().amax(0))
            gains[alpha].append(w8a8_error(X, W) / w8a8_error(X / s, W * s))
    mean = {alpha: sum(found) / len(found) for alpha, found in gains.items()}
    assert mean[0.5] > 3
    assert max(mean, key=lambda alpha: mean[alpha]) == 0.5


def test_inputs_never_seen_are_left_alone() -> None:
    block = toy_block(toy_spec(), 4)
    stats = toy_stats(block, toy_hidden(3, 5))
    absmax = stats[Role("q", 0)].absmax
    assert absmax is not None
    absmax[7] = 0
    (attention, _) = SmoothQuant().plan(block, stats, INT8)
    assert attention.scale[7] == 1
    assert attention.scale.isfinite().all()
    assert (attention.scale > 0).all()


def test_a_weight_of_zeros_keeps_scales_finite() -> None:
    s = SmoothQuant().scale(torch.ones(4), torch.zeros(4))
    assert s.isfinite().all()


def test_experts_share_one_scale_and_the_router_follows() -> None:
    spec = toy_spec(experts=2)
    block = toy_block(toy_spec(experts=0), 6)
    random = torch.Generator().manual_seed(6)
    weights = {**block.weights, Role("router", 0): torch.full((2, 64), 50.0)}
    stats: dict[Role, LinearStats] = dict(toy_stats(block, toy_hidden(3, 7)))
    for expert in range(2):
        x = torch.randn(9, 64, generator=random) * (1 + expert)
        for part in ("gate", "up"):
            weights[Role(part, 0, expert)] = torch.randn(96, 64, generator=random)
            stats[Role(part, 0, expert)] = stats_from(x)
    (_, mlp) = SmoothQuant().plan(ToyBlock(spec, weights), stats, INT8)
    assert Role("router", 0) in mlp.consumers
    readers = [weights[r].abs().amax(0) for r in mlp.consumers if r.part != "router"]
    seen = [stats[r].absmax for r in mlp.consumers if r.part == "gate"]
    max_X = torch.stack([x for x in seen if x is not None]).amax(0)
    assert torch.allclose(mlp.scale, (max_X / torch.stack(readers).amax(0)).sqrt(), rtol=4 * ULP)


def test_norms_without_a_reader_to_encode_are_left_alone() -> None:
    block = toy_block(toy_spec(), 0)
    stats = toy_stats(block, toy_hidden(3, 1))
    only = {Role("v", 0): stats[Role("v", 0)], Role("up", 0): LinearStats()}
    (fold,) = SmoothQuant().plan(block, only, INT8)
    assert fold.consumers == tuple(Role(part, 0) for part in ("q", "k", "v"))
    absmax = stats[Role("v", 0)].absmax
    assert absmax is not None
    assert torch.equal(fold.scale, SmoothQuant().scale(absmax, shared_max(block, "v")))


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_is_checked(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        SmoothQuant(alpha)
