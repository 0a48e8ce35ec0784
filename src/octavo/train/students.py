"""Students to begin with: a teacher with fewer layers, or with narrower MLPs.

A third way, a spec alone, is `octavo.train.initial`; a fourth is any checkpoint with the teacher's
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.backends.reference.weights import Weights
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec, Role

Student = tuple[DecoderSpec, Weights]


def evenly(layers: int, keep: int) -> tuple[int, ...]:
    """`keep` of `layers` layers with the first and the last among them, evenly spread: what comes
    between changes less (DistilBERT, arXiv 1910.01108, takes every other one)."""
    if not 1 <= keep <= layers:
        raise ConfigError(f"{keep} of {layers} layers can't be kept")
    if keep == 1:
        return (0,)
    return tuple(round(i * (layers - 1) / (keep - 1)) for i in range(keep))


def drop_layers(spec: DecoderSpec, weights: Weights, kept: Sequence[int]) -> Student:
    """The model of the layers `kept`, ascending. Raises ConfigError for others."""
    if (
        not kept
        or list(kept) != sorted(set(kept))
        or not 0 <= kept[0] <= kept[-1] < len(spec.layers)
    ):
        raise ConfigError(
            f"layers {list(kept)}: give ascending numbers from 0 to {len(spec.layers) - 1}"
        )
    place = {old: new for new, old in enumerate(kept)}
    found = {
        replace(role, layer=None if role.layer is None else place[role.layer]): w.detach().clone()
        for role, w in weights.items()
        if role.layer is None or role.layer in place
    }
    return replace(spec, layers=tuple(spec.layers[i] for i in kept)), found


def narrow_mlps(spec: DecoderSpec, weights: Weights, width: int) -> Student:
    """The model with `width` channels in every MLP: those whose gate, up and down weights are
    largest together, by the product of their norms.

    Raises UnsupportedError for experts, ConfigError for a width out of range.
    """
    layers: list[LayerSpec] = []
    found = {role: w.detach().clone() for role, w in weights.items()}
    for index, layer in enumerate(spec.layers):
        if not isinstance(layer.mlp, DenseMlp):
            raise UnsupportedError("experts are not narrowed: give a dense model")
        if not 1 <= width <= layer.mlp.intermediate:
            raise ConfigError(f"width {width}: give 1 to {layer.mlp.intermediate}")
        kept = _largest(index, weights, width)
        for part in ("gate", "up", "gate_bias", "up_bias"):
            role = Role(part, index)
            if role in found:
                found[role] = found[role][kept]
        found[Role("down", index)] = found[Role("down", index)][:, kept]
        layers.append(replace(layer, mlp=replace(layer.mlp, intermediate=width)))
    return replace(spec, layers=tuple(layers)), found


def _largest(layer: int, weights: Weights, width: int) -> Tensor:
    """Ascending channels of the largest importance."""
    gate, up = (weights[Role(part, layer)].norm(dim=1) for part in ("gate", "up"))
    score = gate * up * weights[Role("down", layer)].norm(dim=0)
    return torch.sort(torch.topk(score, width).indices).values
