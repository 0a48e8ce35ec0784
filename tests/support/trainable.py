"""A tiny decoder made without transformers, and text that it can learn in a few hundred steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.spec.decoder import AttentionSpec, DecoderSpec, DenseMlp, LayerSpec, RopeSpec
from octavo.spec.graph import role_shape, roles

VOCAB = 32
HIDDEN = 64


def tiny_spec(tied: bool = False) -> DecoderSpec:
    attention = AttentionSpec(2, 1, 32, 32**-0.5, RopeSpec(10000.0, 32))
    layer = LayerSpec(attention, DenseMlp(96))
    return DecoderSpec("llama", VOCAB, HIDDEN, (layer, layer), 1e-5, 64, tied)


def tiny_masters(spec: DecoderSpec, seed: int = 0) -> dict[Any, Any]:
    """torch tensors by role: norms of one, matrices that keep the size of what passes."""
    import torch

    draws = torch.Generator().manual_seed(seed)
    found = {}
    for role in roles(spec):
        shape = role_shape(spec, role)
        scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
        random = torch.randn(shape, generator=draws) * scale
        found[role] = torch.ones(shape) if len(shape) == 1 else random
    return found


def chain(length: int, seed: int = 0) -> list[int]:
    """Text in which two tokens decide the next, three times out of four; the rest is chance."""
    rule = np.random.default_rng(99).integers(0, VOCAB, (VOCAB, VOCAB))
    draws = np.random.default_rng(seed)
    text = [0, 1]
    for _ in range(length):
        surprise = draws.random() < 0.25
        text.append(int(draws.integers(VOCAB) if surprise else rule[text[-2] % 4, text[-1]]))
    return text[2:]
