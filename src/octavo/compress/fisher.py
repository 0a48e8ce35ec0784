"""The diagonal of the Fisher information: the mean over texts of the loss's squared gradients.

The loss is that of the true next tokens, its mean over a text; gradients are squared text by text
and then averaged (SqueezeLLM, arXiv 2306.07629, section 4.1, as its authors' code does). All of the
model is in memory, three times: weights, gradients, and their squares.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from octavo.compress.block import BlockDecoder, load_tensor
from octavo.compress.recipe import role_name
from octavo.core.errors import NumericsError
from octavo.io.safetensors_file import open_safetensors, write_safetensors
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import roles

I64 = npt.NDArray[np.int64]


def squared_gradients(
    source: WeightSource, spec: DecoderSpec, tokens: I64, wanted: Collection[Role]
) -> dict[Role, Tensor]:
    """fp32 [out, in] of each matrix wanted, over tokens [texts, length]. A tied head is the
    embedding: its gradient is that of both uses. Raises NumericsError for a gradient that is no
    number."""
    weights = {role: load_tensor(source, role) for role in roles(spec)}
    chosen = {role: weights[role].requires_grad_() for role in wanted}
    sums = {role: torch.zeros_like(w) for role, w in chosen.items()}
    decoder = BlockDecoder(spec, weights)
    for row in tokens:
        found = torch.autograd.grad(_loss(decoder, row), list(chosen.values()), allow_unused=True)
        for role, gradient in zip(chosen, found, strict=True):
            if gradient is not None:  # an expert that no token reached has none
                sums[role] += gradient.square()
    for role, total in sums.items():
        if not total.isfinite().all():
            raise NumericsError(f"{role_name(role)}: a gradient of the loss is not a number")
    return {role: total / len(tokens) for role, total in sums.items()}


def _loss(decoder: BlockDecoder, row: I64) -> Tensor:
    x = decoder.embed(row)
    for layer in range(len(decoder.spec.layers)):
        x = decoder.learnable_layer(layer, x)
    return cross_entropy(decoder.head(x)[:-1], torch.from_numpy(row)[1:])


class FisherFile:
    """Squared gradients of a run, in its working directory: written whole, read one by one."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "fisher.safetensors"

    def exists(self) -> bool:
        return self._path.exists()

    def write(self, found: dict[Role, Tensor]) -> None:
        write_safetensors(self._path, {role_name(role): f.numpy() for role, f in found.items()})

    def read(self, role: Role) -> Tensor:
        """fp32 [out, in]."""
        stored = open_safetensors(self._path).tensors[role_name(role)]
        values = stored.rows().reshape(-1).view(np.float32).reshape(stored.shape)
        return torch.from_numpy(np.array(values))
