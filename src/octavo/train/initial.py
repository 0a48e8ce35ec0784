"""Weights to begin with where there are none: a student from a config, a model from scratch."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.backends.reference.weights import Weights
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import role_shape, roles

_SPREAD = 0.02  # GPT-2's, for all matrices
_INTO_RESIDUAL = ("o", "down")


def random_masters(spec: DecoderSpec, seed: int = 0) -> Weights:
    """float32 tensors by role, of (spec, seed) alone: norms 1, biases 0, matrices normal.

    Matrices that add to the residual are smaller by sqrt(2 * layers), so that its variance doesn't
    grow with depth (GPT-2, section 2.3).
    """
    draws = torch.Generator().manual_seed(seed)
    return {role: _drawn(spec, role, draws) for role in roles(spec)}


def _drawn(spec: DecoderSpec, role: Role, draws: torch.Generator) -> Tensor:
    shape = role_shape(spec, role)
    if len(shape) == 1:
        return torch.zeros(shape) if role.part.endswith("_bias") else torch.ones(shape)
    shrink = (2 * len(spec.layers)) ** -0.5 if role.part in _INTO_RESIDUAL else 1.0
    return torch.randn(shape, generator=draws) * (_SPREAD * shrink)
