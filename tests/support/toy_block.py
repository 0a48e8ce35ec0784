"""One decoder block in a few lines of torch, as transforms see it: no rope, no cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.compress.base import LinearStats, ScaleFold
from octavo.spec.decoder import (
    AttentionSpec,
    DecoderSpec,
    DenseMlp,
    LayerSpec,
    MoeMlp,
    Part,
    Role,
    RopeSpec,
)
from octavo.spec.graph import role_shape, roles

LENGTH = 8  # tokens of a sequence


def toy_spec(kv_heads: int = 4, bias: bool = False, experts: int = 0) -> DecoderSpec:
    """64 hidden, 96 intermediate."""
    attention = AttentionSpec(4, kv_heads, 16, 0.25, RopeSpec(1e4, 16), qkv_bias=bias)
    mlp = MoeMlp(experts, 1, 96, True) if experts else DenseMlp(96, bias=bias)
    return DecoderSpec("toy", 32, 64, (LayerSpec(attention, mlp),), 1e-6, 64, True)


@dataclass(frozen=True)
class ToyBlock:
    """Implements BlockView for layer 0 of a dense spec."""

    spec: DecoderSpec
    weights: Mapping[Role, Tensor]
    layer: int = 0

    def weight(self, role: Role) -> Tensor:
        return self.weights[role]

    def output(self, inspected: Role, x: Tensor, weights: Mapping[Role, Tensor]) -> Tensor:
        block = replace(self, weights={**self.weights, **weights})
        match inspected.part:
            case "q" | "k" | "v":
                return block.linear("o", block.mixed(x))
            case "gate" | "up":
                return block.linear("down", block.gated(x))
            case part:
                return block.linear(part, x)

    def linear(self, part: Part, x: Tensor) -> Tensor:
        bias = {"q": "q_bias", "v": "v_bias", "up": "up_bias"}.get(part)
        added = self.weights.get(Role(bias, 0)) if bias else None
        y = x @ self.weight(Role(part, 0)).T
        return y if added is None else y + added

    def mixed(self, x: Tensor) -> Tensor:
        """The input of o for normed rows x, sequences of LENGTH one after the other, the last of
        which may be cut."""
        return torch.cat([self._mixed(x[at : at + LENGTH]) for at in range(0, len(x), LENGTH)])

    def _mixed(self, x: Tensor) -> Tensor:
        a = self.spec.layers[0].attention
        q, k, v = (
            self.linear(part, x).reshape(len(x), n, a.head_dim).transpose(0, 1)
            for part, n in (("q", a.heads), ("k", a.kv_heads), ("v", a.kv_heads))
        )
        k, v = (t.repeat_interleave(a.heads // a.kv_heads, 0) for t in (k, v))
        scores = (q @ k.mT * a.scale).masked_fill(~torch.ones(len(x), len(x)).tril().bool(), -1e9)
        return (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)

    def gated(self, x: Tensor) -> Tensor:
        """The input of down for normed rows x."""
        return torch.nn.functional.silu(self.linear("gate", x)) * self.linear("up", x)

    def inputs(self, hidden: Tensor) -> dict[str, Tensor]:
        """What q, o, gate and down read."""
        x = self._norm("attn_norm", hidden)
        mixed = self.mixed(x)
        hidden = hidden + self.linear("o", mixed)
        normed = self._norm("mlp_norm", hidden)
        return {"q": x, "o": mixed, "gate": normed, "down": self.gated(normed), "hidden": hidden}

    def forward(self, hidden: Tensor) -> Tensor:
        seen = self.inputs(hidden)
        return seen["hidden"] + self.linear("down", seen["down"])

    def folded(self, folds: Sequence[ScaleFold]) -> ToyBlock:
        """With scales moved as ScaleFold says."""
        weights = dict(self.weights)
        for fold in folds:
            for role in fold.consumers:
                weights[role] = weights[role] * fold.scale
            mine = self._producer_scale(fold)
            bias = Role(f"{fold.producer.part}_bias", 0)
            for role in (fold.producer, bias):
                if role in weights:
                    w = weights[role]
                    weights[role] = w / (mine[:, None] if w.ndim == 2 else mine)
        return replace(self, weights=weights)

    def _producer_scale(self, fold: ScaleFold) -> Tensor:
        if fold.producer.part != "v":
            return fold.scale
        a = self.spec.layers[0].attention
        heads = fold.scale.reshape(a.kv_heads, a.heads // a.kv_heads, a.head_dim)
        assert torch.equal(heads, heads[:, :1].expand_as(heads))
        return heads[:, 0].reshape(-1)

    def _norm(self, part: Part, x: Tensor) -> Tensor:
        rms = (x.square().mean(-1, keepdim=True) + self.spec.norm_eps).sqrt()
        return x / rms * self.weight(Role(part, 0))


def toy_block(spec: DecoderSpec, seed: int, loud: Mapping[int, float] | None = None) -> ToyBlock:
    """Random weights; norms let the inputs in `loud` through that many times louder, and the
    weights that read them are smaller by as much, as in a trained model with outliers."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for role in roles(spec):
        if role.layer is None:
            continue
        shape = role_shape(spec, role)
        w = torch.randn(shape, generator=random)
        weights[role] = w / shape[-1] ** 0.5 if len(shape) == 2 else w
        if role.part.endswith("norm"):
            weights[role] = torch.ones(shape)
    for channel, times in (loud or {}).items():
        for part in ("attn_norm", "mlp_norm"):
            weights[Role(part, 0)][channel] *= times
        for part in ("q", "k", "v", "gate", "up"):
            weights[Role(part, 0)][:, channel] /= times**0.5
    return ToyBlock(spec, weights)


def toy_hidden(sequences: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(sequences * LENGTH, 64, generator=random)


def stats_from(x: Tensor) -> LinearStats:
    """All statistics but FISHER of rows x."""
    return LinearStats(
        tokens=len(x),
        absmax=x.abs().amax(0),
        mean_abs=x.abs().mean(0),
        hessian=2 / len(x) * x.T @ x,
        samples=x,
    )


def toy_stats(block: ToyBlock, hidden: Tensor) -> dict[Role, LinearStats]:
    """What a driver collects for the block."""
    seen = block.inputs(hidden)
    readers = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}
    found = {}
    for first, parts in readers.items():
        shared = stats_from(seen[first])
        found.update({Role(part, 0): shared for part in parts})
    return found
