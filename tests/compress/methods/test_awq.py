"""AWQ: never worse than no scaling, better with a planted outlier, and the block stays the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from octavo.compress.base import BlockView, LinearStats
from octavo.compress.methods.awq import Awq, loss, mean_abs, outputs
from octavo.core.errors import ConfigError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.spec.decoder import DecoderSpec, Part, Role
from octavo.spec.graph import FoldEdge
from support.toy_block import ToyBlock, stats_from, toy_block, toy_hidden, toy_spec, toy_stats

INT3 = NumberFormat.parse("int3_g32_asym")
LOUD = {5: 60.0, 41: 25.0}
UP, DOWN = Role("up", 0), Role("down", 0)


@dataclass(frozen=True)
class Linear:
    """A BlockView of one linear layer."""

    w: Tensor
    spec: DecoderSpec = field(default_factory=toy_spec)
    layer: int = 0

    def weight(self, role: Role) -> Tensor:
        return self.w

    def output(self, inspected: Role, x: Tensor, weights: Mapping[Role, Tensor]) -> Tensor:
        return x @ weights.get(inspected, self.w).T


def planted(times: float, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    X, W = (torch.randn(256, 256, generator=random) for _ in range(2))
    X[:, 17] *= times
    return X, W


def loss_of(
    s: Tensor, block: BlockView, stats: Mapping[Role, LinearStats], target: NumberFormat
) -> float:
    return loss(s, block, stats, target, outputs(block, stats, {}))


@pytest.mark.parametrize(("times", "gain"), [(20.0, 1.2), (50.0, 1.7), (100.0, 2.3)])
def test_a_planted_outlier_is_protected(times: float, gain: float) -> None:
    """methods.md section 7: measured 1.35, 2.14 and 2.91."""
    X, W = planted(times, 0)
    target, stats = NumberFormat.parse("int3_g128_asym"), {DOWN: stats_from(X)}
    s = Awq().best(FoldEdge(UP, (DOWN,)), Linear(W), stats, target).scale
    plain = loss_of(torch.ones(256), Linear(W), stats, target)
    assert plain / loss_of(s, Linear(W), stats, target) > gain
    # The same when folded for real: encoded weights, divided inputs.
    Q = torch.from_numpy(rtn.encode((W * s).numpy(), target).dequantize())
    assert plain / float(((X / s) @ Q.T - X @ W.T).square().sum()) > gain
    assert s.argmax() == 17


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", ["int3_g32_asym", "int4_channel", "nf4_g32", "int2_g16_asym"])
def test_no_edge_is_worse_than_without_scales(name: str, kv_heads: int) -> None:
    block, hidden = toy_block(toy_spec(kv_heads), 1, LOUD), toy_hidden(6, 2)
    stats, target = toy_stats(block, hidden), NumberFormat.parse(name)
    folds = Awq().plan(block, stats, target)
    assert folds
    for fold in folds:
        seen = {role: stats[role] for role in fold.consumers}
        plain = loss_of(torch.ones_like(fold.scale), block, seen, target)
        assert loss_of(fold.scale, block, seen, target) < plain


def test_the_whole_block_gains() -> None:
    block, hidden = toy_block(toy_spec(2), 1, LOUD), toy_hidden(6, 2)
    folded = block.folded(Awq().plan(block, toy_stats(block, hidden), INT3))
    want = block.forward(hidden)
    plain, scaled = ((rounded(b).forward(hidden) - want).square().sum() for b in (block, folded))
    assert scaled < 0.8 * plain


def rounded(block: ToyBlock) -> ToyBlock:
    weights = {
        role: w if w.ndim == 1 else rtn.fake_quantize(w, INT3, torch)
        for role, w in block.weights.items()
    }
    return ToyBlock(block.spec, weights)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_block_computes_the_same(kv_heads: int, bias: bool) -> None:
    block, hidden = toy_block(toy_spec(kv_heads, bias), 3, LOUD), toy_hidden(4, 4)
    folds = Awq().plan(block, toy_stats(block, hidden), INT3)
    before, after = block.forward(hidden), block.folded(folds).forward(hidden)
    assert not torch.equal(before, after)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_heads_that_share_a_value_head_share_scales(kv_heads: int) -> None:
    block, hidden = toy_block(toy_spec(kv_heads), 5, LOUD), toy_hidden(4, 4)
    block.weights[Role("v", 0)][:4] *= 40  # loud channels, so that scaling them pays
    folds = {f.producer.part: f for f in Awq().plan(block, toy_stats(block, hidden), INT3)}
    heads = folds["v"].scale.reshape(kv_heads, 4 // kv_heads, 16)
    assert torch.equal(heads, heads[:, :1].expand_as(heads))
    assert set(heads[0, 0].topk(4).indices.tolist()) == {0, 1, 2, 3}
    before, after = block.forward(hidden), block.folded([folds["v"]]).forward(hidden)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


def test_scales_are_powers_centred_on_one() -> None:
    s_X = torch.tensor([0.0, 1e-3, 1.0, 400.0])
    for alpha in (0.0, 0.35, 0.95):
        s = Awq().scale(s_X, alpha)
        assert float(s.max() * s.min()) == pytest.approx(1.0, rel=1e-6)
        ratio = float(s[3] / s[2])
        assert ratio == pytest.approx(400.0**alpha, rel=1e-5)
    assert (Awq().scale(s_X, 0.0) == 1).all()


def test_flat_inputs_need_no_fold() -> None:
    """All inputs equally large: every alpha gives s = 1, and nothing is to be moved."""
    X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).sign()
    stats = {DOWN: stats_from(X)}
    fold = Awq().best(FoldEdge(UP, (DOWN,)), Linear(torch.randn(8, 32)), stats, INT3)
    assert (fold.scale == 1).all()


def test_mean_abs_weighs_experts_by_their_tokens() -> None:
    stats = [
        LinearStats(tokens=30, mean_abs=torch.tensor([1.0, 0.0])),
        LinearStats(tokens=10, mean_abs=torch.tensor([5.0, 4.0])),
    ]
    assert torch.allclose(mean_abs(stats), torch.tensor([2.0, 1.0]))


@pytest.mark.parametrize("part", ["q", "k", "v", "gate", "up", "down"])
def test_one_reader_to_encode_is_enough(part: Part) -> None:
    block, hidden = toy_block(toy_spec(), 1, LOUD), toy_hidden(6, 2)
    role = Role(part, 0)
    only = {role: toy_stats(block, hidden)[role], Role("o", 0): LinearStats()}
    (fold,) = Awq().plan(block, only, INT3)
    assert role in fold.consumers
    plain = loss_of(torch.ones_like(fold.scale), block, {role: only[role]}, INT3)
    assert loss_of(fold.scale, block, {role: only[role]}, INT3) < plain


def test_readers_of_one_module_count_once() -> None:
    block, hidden = toy_block(toy_spec(), 1), toy_hidden(2, 2)
    stats = toy_stats(block, hidden)
    assert len(outputs(block, stats, {})) == 4


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="points"):
        Awq(points=0)
    with pytest.raises(ConfigError, match="share"):
        Awq(share=0.0)


@pytest.mark.parametrize("times", [1.0, 20.0, 100.0])
def test_a_search_on_fewer_samples_finds_as_much(times: float) -> None:
    """Of what the whole search gains, at least nine tenths; and never worse than no scaling."""
    X, W = planted(times, 1)
    target, stats = NumberFormat.parse("int3_g128_asym"), {DOWN: stats_from(X)}
    edge = FoldEdge(UP, (DOWN,))
    whole, part = (
        loss_of(
            Awq(share=share).best(edge, Linear(W), stats, target).scale, Linear(W), stats, target
        )
        for share in (1.0, 0.125)
    )
    plain = loss_of(torch.ones(256), Linear(W), stats, target)
    assert whole <= part <= plain
    assert plain - part >= 0.9 * (plain - whole)


def test_all_points_are_compared_on_a_share_of_the_samples_and_four_on_all() -> None:
    X, W = planted(50.0, 2)
    seen: list[int] = []

    class Counting(Linear):
        def output(self, inspected: Role, x: Tensor, weights: Mapping[Role, Tensor]) -> Tensor:
            seen.append(len(x))
            return x @ weights.get(inspected, self.w).T

    Awq().best(FoldEdge(UP, (DOWN,)), Counting(W), {DOWN: stats_from(X)}, INT3)
    assert seen == [32] * (1 + 19) + [256] * (1 + 4)
