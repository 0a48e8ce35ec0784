"""QuaRot's offline rotations (arXiv 2404.00456, section 4, stages 1a and 1c): spread outliers.

An RMS norm without its weights commutes with any orthogonal Q: norm(x Q) = norm(x) Q. Once each
norm's weights are moved into the linears behind it, the residual stream x can be replaced by x Q
(R1): what writes to it, W, becomes Q^T W, and what reads it becomes W Q. Likewise the values of
each head (R2): attention only mixes them along tokens, so that v's rows and o's columns rotate by a
matrix of their own. A random Hadamard matrix spreads every outlier over all channels, which groups
share a scale with. The rotations during inference (R3, R4), for 4-bit activations and caches, are
not made: nothing is added to the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.compress.facts import Facts
from octavo.compress.methods.hadamard import random_rotation
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.weights import RawBlocks, WeightSource
from octavo.spec.decoder import DecoderSpec, Part, Role
from octavo.spec.graph import role_shape

F32 = npt.NDArray[np.float32]

_READERS: Mapping[Part, Part] = MappingProxyType(
    {
        "q": "attn_norm", "k": "attn_norm", "v": "attn_norm",
        "gate": "mlp_norm", "up": "mlp_norm", "router": "mlp_norm",
        "head": "final_norm",
    }
)  # fmt: skip
_WRITERS: tuple[Part, ...] = ("o", "down")
_BIASES: tuple[Part, ...] = ("o_bias", "down_bias")
_NORMS: tuple[Part, ...] = ("attn_norm", "mlp_norm", "final_norm")


@dataclass(frozen=True, slots=True)
class QuaRot:
    """A whole-model transform; computed in fp64, stored in fp32.

    residual  R1. The weights of the final norm move into the head, so that a head tied to the
              embedding becomes a matrix of its own: vocabulary times hidden more weights.
              Refused for families that norm a branch before it is added (Gemma 2 and 3), for such a
              norm's weights can't move.
    heads     R2.
    seed      of the signs.
    """

    facts: ClassVar[Facts] = Facts(
        output="preserved", quantizes="nothing by itself", choice="closed form",
        format="int4_g64", source="arXiv 2404.00456",
        synonyms=("hadamard", "rotation", "incoherence", "outliers"),
        proof="tests/compress/methods/test_quarot.py",
    )  # fmt: skip

    residual: bool = True
    heads: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.residual or self.heads):
            raise ConfigError("quarot: residual and heads are both false: nothing is rotated")

    def respec(self, spec: DecoderSpec) -> DecoderSpec:
        """The spec of what `prepare` gives. Raises UnsupportedError."""
        if not self.residual:
            return spec
        if any(layer.post_norms for layer in spec.layers):
            raise UnsupportedError(
                "quarot can't rotate the residual stream of a model whose branches are normed "
                "before they are added; use the option residual: false"
            )
        return replace(spec, tied_head=False)

    def prepare(self, source: WeightSource, spec: DecoderSpec) -> WeightSource:
        """The same model in rotated weights; `spec` is the one before."""
        random = torch.Generator().manual_seed(self.seed)
        Q = random_rotation(spec.hidden, random) if self.residual else None
        each = {
            index: random_rotation(layer.attention.head_dim, random)
            for index, layer in enumerate(spec.layers)
            if self.heads
        }
        return RotatedSource(source, spec, Q, each)


@dataclass(frozen=True, slots=True)
class RotatedSource:
    """Weights of `source`, rotated as they are read. Q [hidden, hidden] or None; R of a layer
    [head_dim, head_dim]."""

    source: WeightSource
    spec: DecoderSpec
    Q: Tensor | None
    R: Mapping[int, Tensor] = field(default_factory=dict)

    def tensor(self, role: Role) -> RotatedView:
        return RotatedView(self._shape(role), lambda: self._rotated(role))

    def has(self, role: Role) -> bool:
        return self.source.has(role) or (role.part == "head" and self.Q is not None)

    def describe(self) -> str:
        return f"{self.source.describe()}, rotated"

    def _shape(self, role: Role) -> tuple[int, ...]:
        return role_shape(self.spec, role)

    def _rotated(self, role: Role) -> F32:
        if self.Q is not None and role.part in _NORMS:
            return np.ones(self._shape(role), np.float32)
        W = self._values(self._origin(role))
        if self.Q is not None:
            W = self._in_stream(role, W, self.Q)
        if role.layer is not None and role.layer in self.R:
            W = self._in_heads(role, W, self.R[role.layer])
        return W.float().numpy()

    def _in_stream(self, role: Role, W: Tensor, Q: Tensor) -> Tensor:
        """R1 and the norms' weights."""
        if role.part in _READERS:
            norm = Role(_READERS[role.part], role.layer)
            return (W * self._values(norm)) @ Q
        if role.part in _WRITERS:
            return Q.T @ W
        return W @ Q if role.part == "embed" or role.part in _BIASES else W

    def _in_heads(self, role: Role, W: Tensor, R: Tensor) -> Tensor:
        """R2: v's outputs and o's inputs, head by head."""
        if role.part == "v":
            return (R.T @ W.reshape(-1, len(R), W.shape[1])).reshape(W.shape)
        if role.part in ("v_bias", "o"):
            return (W.reshape(-1, len(R)) @ R).reshape(W.shape)
        return W

    def _origin(self, role: Role) -> Role:
        tied = role.part == "head" and self.spec.tied_head
        return Role("embed") if tied else role

    def _values(self, role: Role) -> Tensor:
        view = self.source.tensor(role)
        values = torch.from_numpy(np.array(view.float32())).double()
        view.drop()
        return values


@dataclass(frozen=True, slots=True)
class RotatedView:
    """A tensor that is computed when it is asked for."""

    shape: tuple[int, ...]
    compute: Callable[[], F32]

    @property
    def format(self) -> NumberFormat:
        return FP32

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        return self.compute()[start:stop]

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        rows = self.float32(start, stop)
        return QuantizedTensor(FP32, (rows.shape[0], rows.shape[1]), rows)

    def raw(self, start: int, stop: int) -> RawBlocks:
        rows = np.ascontiguousarray(self.float32(start, stop))
        return RawBlocks("F32", rows.view(np.uint8).reshape(len(rows), -1))

    def drop(self) -> None:
        """Nothing is kept."""
