"""How much each layer, head, channel and expert of a model does on a text: one dense pass.

A layer by its block influence, 1 - mean cos(x_in, x_out) (ShortGPT, arXiv 2403.03853, eq. 1). What
lies between two matrices (a head, a channel, an expert's output) by the energy that it gives to
the residual stream, sum over tokens and over its inputs j of x_j^2 |W_j|^2: Wanda's score (arXiv
2306.11695), summed over what goes together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.compress.base import Needs
from octavo.compress.block import BlockDecoder, load_block, load_tensor
from octavo.compress.stats import StatsGatherer
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, MoeMlp, Role


@dataclass(frozen=True, slots=True)
class LayerImportance:
    """influence  of the block;  groups  [kv heads], a key/value head with its queries;
    channels  [intermediate] of each expert (of a dense MLP: one)."""

    influence: float
    groups: Tensor
    channels: tuple[Tensor, ...]

    @property
    def experts(self) -> Tensor:
        """[experts]: the sum over an expert's channels."""
        return torch.stack([energy.sum() for energy in self.channels])


def importance(
    source: WeightSource, spec: DecoderSpec, tokens: npt.NDArray[np.int64]
) -> tuple[LayerImportance, ...]:
    """Of every layer, over tokens int64 [sequences, length]; hidden states stay in memory."""
    embed = BlockDecoder(spec, {Role("embed"): load_tensor(source, Role("embed"))})
    states = [embed.embed(sequence) for sequence in tokens]
    found = []
    for layer in range(len(spec.layers)):
        of_layer, states = _layer(source, spec, layer, states)
        found.append(of_layer)
    return tuple(found)


def _layer(
    source: WeightSource, spec: DecoderSpec, layer: int, states: list[Tensor]
) -> tuple[LayerImportance, list[Tensor]]:
    weights = load_block(source, spec, layer)
    watched = {role: w for role, w in weights.items() if role.part in ("o", "down")}
    gatherers = {r: StatsGatherer(Needs.MEAN_SQUARE, w.shape[1]) for r, w in watched.items()}
    decoder = BlockDecoder(spec, weights)

    def watch(role: Role, x: Tensor) -> None:
        if role in gatherers:
            gatherers[role].add(x, False)

    decoder.watcher = watch
    outputs = [decoder.run_layer(layer, x) for x in states]
    energy = {role: _energy(gatherers[role], w) for role, w in watched.items()}
    return _scored(spec, layer, energy, _influence(states, outputs)), outputs


def _energy(gatherer: StatsGatherer, weight: Tensor) -> Tensor:
    """[in]: of each input, summed over tokens."""
    stats = gatherer.stats()
    if stats.mean_square is None:
        return torch.zeros(weight.shape[1])
    return stats.tokens * stats.mean_square * weight.square().sum(0)


def _influence(inputs: list[Tensor], outputs: list[Tensor]) -> float:
    cosines = [torch.cosine_similarity(x, y, dim=-1) for x, y in zip(inputs, outputs, strict=True)]
    return float(1 - torch.cat(cosines).double().mean())


def _scored(
    spec: DecoderSpec, layer: int, energy: Mapping[Role, Tensor], influence: float
) -> LayerImportance:
    block = spec.layers[layer]
    groups = energy[Role("o", layer)].reshape(block.attention.kv_heads, -1).sum(1)
    experts = range(block.mlp.experts) if isinstance(block.mlp, MoeMlp) else (None,)
    channels = tuple(energy[Role("down", layer, e)] for e in experts)
    return LayerImportance(influence, groups, channels)
