"""Sizes that follow from a spec alone: parameters, weights in a format, keys and values, reads.

Bytes are exact for a format as `--format` applies it: every linear layer, the head and the
embedding take the format; norms, biases and routers stay fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.core.errors import FormatError
from octavo.formats.number_format import NumberFormat
from octavo.spec.decoder import DecoderSpec, LayerSpec, MoeMlp, Role
from octavo.spec.graph import role_shape, roles

KV_BYTES = 2  # bf16
_MAX_CONTEXT = 1 << 40


@dataclass(frozen=True, slots=True)
class Matrices:
    """Equal-shaped matrices: how many are held, and how many of them a token reads on average."""

    shape: tuple[int, int]
    held: int
    read: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """A model's parameters. `small` ones (norms, biases, routers) are read whole for each token."""

    matrices: tuple[Matrices, ...]
    small: int
    embedding_row: int  # values of the one row read of an embedding that is no head as well

    @property
    def parameters(self) -> int:
        return self.small + sum(m.held * math.prod(m.shape) for m in self.matrices)


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of weights in one format.

    pure       parameters * bits / 8
    extra      scales, and what fp32 norms, biases and routers take beyond `pure`
    per_token  bytes read for one token of one sequence, without keys and values
    """

    pure: float
    extra: float
    per_token: float

    @property
    def total(self) -> float:
        return self.pure + self.extra


def footprint(spec: DecoderSpec) -> Footprint:
    """Count every tensor of a spec. Equal shapes are merged."""
    held: dict[tuple[int, int], list[float]] = {}
    small = 0
    for role in roles(spec):
        shape = role_shape(spec, role)
        if len(shape) == 1 or role.part == "router":
            small += math.prod(shape)
            continue
        counts = held.setdefault((shape[0], shape[1]), [0, 0.0])
        counts[0] += 1
        counts[1] += read_share(spec, role)
    matrices = tuple(Matrices(shape, int(n), read) for shape, (n, read) in held.items())
    return Footprint(matrices, small, 0 if spec.tied_head else spec.hidden)


def read_share(spec: DecoderSpec, role: Role) -> float:
    """How much of a tensor one token reads: experts are read top_k of experts times, and of an
    embedding that isn't the head one row (counted apart, so 0 here)."""
    if role.part == "embed":
        return 1.0 if spec.tied_head else 0.0
    if role.expert is None or role.layer is None:
        return 1.0
    mlp = spec.layers[role.layer].mlp
    return mlp.top_k / mlp.experts if isinstance(mlp, MoeMlp) else 1.0


def weight_bytes(model: Footprint, number_format: NumberFormat) -> WeightBytes:
    """Bytes in a format. Raises FormatError, naming the shape, when a matrix can't take it."""
    norms = 4.0 * model.small
    total, read = norms, norms
    for matrices in model.matrices:
        bits = number_format.bits_per_value(matrices.shape)
        size = math.prod(matrices.shape) * bits / 8
        total += matrices.held * size
        read += matrices.read * size
    row = model.embedding_row * number_format.bits / 8
    pure = model.parameters * number_format.bits / 8
    return WeightBytes(pure, total - pure, read + row)


def try_weight_bytes(model: Footprint, name: str) -> WeightBytes | FormatError:
    """`weight_bytes`, or the reason why a matrix can't take the format."""
    try:
        return weight_bytes(model, NumberFormat.parse(name))
    except FormatError as error:
        return error


def kv_bytes(spec: DecoderSpec, context: int) -> int:
    """Bytes of bf16 keys and values of one sequence; window layers keep their window only."""
    return sum(_kv_tokens(layer, context) * _kv_row(layer) for layer in spec.layers)


def longest_context(spec: DecoderSpec, free: float) -> int:
    """The most tokens whose keys and values fit into `free` bytes, up to the model's maximum."""
    if free < 0:
        return 0
    low, high = 0, min(spec.max_positions, _MAX_CONTEXT)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kv_bytes(spec, middle) <= free else (low, middle - 1)
    return low


def _kv_tokens(layer: LayerSpec, context: int) -> int:
    window = layer.attention.window
    return context if window is None else min(context, window)


def _kv_row(layer: LayerSpec) -> int:
    return 2 * layer.attention.kv_heads * layer.attention.head_dim * KV_BYTES
