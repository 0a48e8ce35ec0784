"""Structured pruning: fewer layers, heads, channels or experts, as an ordinary smaller model.

What is kept keeps its weights; every layer keeps equally many heads, channels and experts, for a
config.json knows one number of each. `octavo shrink` writes it, in the family's own names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.compress.export import FloatType, write_hf
from octavo.compress.importance import LayerImportance
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.checkpoint import OpenModel
from octavo.io.weights import RawBlocks, WeightSource
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec, MoeMlp, Role
from octavo.spec.graph import role_shape
from octavo.spec.table import family_named

F32 = npt.NDArray[np.float32]
_QUERIES, _KEYS = ("q", "q_bias"), ("k", "v", "k_bias", "v_bias")
_EXPERTS = frozenset({"num_experts", "num_local_experts"})
_CHANNELS = ("gate", "up", "gate_bias", "up_bias")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many stay; None: all. `groups`: key/value heads, each with its query heads."""

    layers: int | None = None
    groups: int | None = None
    channels: int | None = None
    experts: int | None = None


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What stays of one layer, by its numbers there: `channels` of each kept expert (of a dense
    MLP: of one)."""

    layer: int
    groups: tuple[int, ...]
    experts: tuple[int | None, ...]
    channels: tuple[tuple[int, ...], ...]


def choose(
    spec: DecoderSpec, scores: Sequence[LayerImportance], sizes: Sizes
) -> tuple[KeptLayer, ...]:
    """The most important of each, in their order. Raises ConfigError for sizes that a layer hasn't
    got, or that leave nothing."""
    layers = _most(torch.tensor([s.influence for s in scores]), sizes.layers, "layers")
    return tuple(_kept(spec.layers[layer], layer, scores[layer], sizes) for layer in layers)


def shrunken(spec: DecoderSpec, kept: Sequence[KeptLayer]) -> DecoderSpec:
    """The spec of what stays."""
    return replace(spec, layers=tuple(_smaller(spec.layers[k.layer], k) for k in kept))


def write_shrunken(
    model: OpenModel, kept: Sequence[KeptLayer], out: Path, dtype: FloatType = "fp32"
) -> DecoderSpec:
    """Write the directory `out` of a Hugging Face checkpoint, and say what model it holds.

    Raises UserError when `out` exists, UnsupportedError when no config.json can say the spec.
    """
    spec = shrunken(model.spec, kept)
    metadata = _config(model, spec, kept) if model.kind == "hf" else model.metadata
    header = replace(model.header, spec=spec, metadata=metadata)
    source = ShrunkenSource(model.source, model.spec, kept)
    write_hf(OpenModel(header, cast(Any, source), {}), out, dtype)
    return spec


class ShrunkenSource:
    """A WeightSource over the kept rows and columns of another."""

    def __init__(self, source: WeightSource, spec: DecoderSpec, kept: Sequence[KeptLayer]) -> None:
        self._source, self._spec, self._kept = source, spec, kept

    def tensor(self, role: Role) -> ShrunkenView:
        if role.layer is None:
            whole = self._source.tensor(role)
            return ShrunkenView(whole.float32())
        kept = self._kept[role.layer]
        at = None if role.expert is None else kept.experts[role.expert]
        old = replace(role, layer=kept.layer, expert=at)
        rows, columns = self._places(old, role.expert or 0, kept)
        values = self._source.tensor(old).float32()
        values = values if rows is None else values[rows]
        return ShrunkenView(values if columns is None else values[:, columns])

    def has(self, role: Role) -> bool:
        return role.layer is None or role.layer < len(self._kept)

    def describe(self) -> str:
        return f"{self._source.describe()}, {len(self._kept)} layers of it"

    def _places(
        self, role: Role, expert: int, kept: KeptLayer
    ) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64] | None]:
        """Rows and columns that stay of a tensor; None: all."""
        attention = self._spec.layers[kept.layer].attention
        each = attention.heads // attention.kv_heads * attention.head_dim
        channels = np.array(kept.channels[expert])
        if role.part in _QUERIES:
            return _runs(kept.groups, each), None
        if role.part == "o":
            return None, _runs(kept.groups, each)
        if role.part in _KEYS:
            return _runs(kept.groups, attention.head_dim), None
        if role.part in _CHANNELS:
            return channels, None
        if role.part == "down":
            return None, channels
        return (np.array(kept.experts) if role.part == "router" else None), None


class ShrunkenView:
    """A TensorView of values in memory."""

    def __init__(self, values: F32) -> None:
        self._values = np.ascontiguousarray(values)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    @property
    def format(self) -> NumberFormat:
        return FP32

    def raw(self, start: int, stop: int) -> RawBlocks:
        return RawBlocks("F32", self._values[start:stop].view(np.uint8))

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        rows = self._values[start:stop]
        return QuantizedTensor(FP32, (rows.shape[0], rows.shape[1]), rows)

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        return self._values[start:stop]

    def drop(self) -> None:
        """Nothing is mapped."""


def parameters(spec: DecoderSpec, roles: Sequence[Role]) -> int:
    """Weights of these roles."""
    return sum(int(np.prod(role_shape(spec, role))) for role in roles)


def _config(model: OpenModel, spec: DecoderSpec, kept: Sequence[KeptLayer]) -> dict[str, object]:
    """The source's config.json, with what the smaller spec changes. Raises UnsupportedError when
    the family doesn't read the spec from it."""
    layer, old = spec.layers[0], dict(model.metadata)
    width = "moe_intermediate_size" if "moe_intermediate_size" in old else "intermediate_size"
    config = old | {
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": layer.attention.heads,
        "num_key_value_heads": layer.attention.kv_heads,
        "head_dim": layer.attention.head_dim,
        width: layer.mlp.intermediate,
    }
    if isinstance(layer.mlp, MoeMlp):
        config |= dict.fromkeys(_EXPERTS & old.keys(), layer.mlp.experts)
    kinds = old.get("layer_types")
    if isinstance(kinds, list):
        config["layer_types"] = [kinds[k.layer] for k in kept]
    reader = ConfigReader(config, "the smaller model's config.json")
    reader.ignore("quantization_config")
    if family_named(spec.family).from_hf(reader) != spec:
        raise UnsupportedError(
            f"{model.path}: no config.json of the {spec.family} family says what is to stay; keep "
            "other layers, or all of them"
        )
    return config


def _kept(layer: LayerSpec, at: int, scores: LayerImportance, sizes: Sizes) -> KeptLayer:
    groups = _most(scores.groups, sizes.groups, "groups of heads")
    if not isinstance(layer.mlp, MoeMlp):
        if sizes.experts is not None:
            raise ConfigError(f"layer {at} has no experts to choose from")
        return KeptLayer(at, groups, (None,), (_channels(scores, 0, sizes),))
    experts = _most(scores.experts, sizes.experts, "experts")
    if len(experts) < layer.mlp.top_k:
        raise ConfigError(
            f"{len(experts)} experts are to stay, and each token takes {layer.mlp.top_k}"
        )
    return KeptLayer(at, groups, experts, tuple(_channels(scores, e, sizes) for e in experts))


def _channels(scores: LayerImportance, expert: int, sizes: Sizes) -> tuple[int, ...]:
    return _most(scores.channels[expert], sizes.channels, "channels")


def _most(scores: Tensor, count: int | None, what: str) -> tuple[int, ...]:
    """Numbers of the `count` highest, ascending; of equal ones the first."""
    there = len(scores)
    if count is None:
        return tuple(range(there))
    if not 1 <= count <= there:
        raise ConfigError(f"{count} {what} are to stay, and there are {there}: choose 1 to {there}")
    order = scores.argsort(descending=True, stable=True)[:count]
    return tuple(sorted(order.tolist()))


def _smaller(layer: LayerSpec, kept: KeptLayer) -> LayerSpec:
    attention, mlp = layer.attention, layer.mlp
    each = attention.heads // attention.kv_heads
    heads = replace(attention, heads=each * len(kept.groups), kv_heads=len(kept.groups))
    width = len(kept.channels[0])
    smaller: DenseMlp | MoeMlp
    if isinstance(mlp, MoeMlp):
        smaller = replace(mlp, experts=len(kept.experts), intermediate=width)
    else:
        smaller = replace(mlp, intermediate=width)
    return replace(layer, attention=heads, mlp=smaller)


def _runs(groups: Sequence[int], size: int) -> npt.NDArray[np.int64]:
    return (np.array(groups)[:, None] * size + np.arange(size)).reshape(-1)
