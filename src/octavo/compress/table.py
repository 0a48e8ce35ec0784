"""Which methods there are. Strings only: a method's module is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, NamedTuple

from octavo.compress.base import (
    BlockEncoder,
    Encoder,
    Preparation,
    Pruner,
    Trainer,
    Transform,
)
from octavo.core.errors import ConfigError, InternalError
from octavo.core.registry import Registry

Kind = Literal["prepare", "transform", "prune", "encode", "train"]
KINDS: tuple[Kind, ...] = ("prepare", "transform", "prune", "encode", "train")  # order in a recipe


class Method(NamedTuple):
    """A row of the table; `type` is "module:Class", a dataclass whose fields are its options and
    whose `facts` (octavo.compress.facts) are what `octavo methods` prints.

    encoder  of all other kinds: the one that its paper goes with.
    blocks   an encoder of whole blocks (base.BlockEncoder).
    """

    name: str
    kind: Kind
    type: str
    encoder: str = "rtn"
    blocks: bool = False


METHODS = Registry(
    "compression method",
    (
        Method("rtn", "encode", "octavo.compress.methods.rtn:Rtn"),
        Method("cast", "encode", "octavo.compress.methods.cast:Cast"),
        Method("gptq", "encode", "octavo.compress.methods.gptq:Gptq"),
        Method("trellis", "encode", "octavo.compress.methods.trellis:Trellis"),
        Method("searched", "encode", "octavo.compress.methods.searched:Searched"),
        Method("hqq", "encode", "octavo.compress.methods.hqq:Hqq"),
        Method("kmeans", "encode", "octavo.compress.methods.kmeans:KMeans"),
        Method("squeezellm", "encode", "octavo.compress.methods.kmeans:FisherKMeans"),
        Method("signs", "encode", "octavo.compress.methods.signs:Signs"),
        Method("awq", "transform", "octavo.compress.methods.awq:Awq", "awq_clip"),
        Method("awq_clip", "encode", "octavo.compress.methods.awq_clip:AwqClip"),
        Method("awq_salient", "encode", "octavo.compress.methods.awq_salient:AwqSalient"),
        Method("smoothquant", "transform", "octavo.compress.methods.smoothquant:SmoothQuant"),
        Method("qat", "train", "octavo.compress.methods.qat:Qat"),
        Method("magnitude", "prune", "octavo.compress.methods.magnitude:Magnitude"),
        Method("wanda", "prune", "octavo.compress.methods.wanda:Wanda"),
        Method("sparsegpt", "encode", "octavo.compress.methods.sparsegpt:SparseGpt"),
        Method("quarot", "prepare", "octavo.compress.methods.quarot:QuaRot", "gptq"),
        Method("autoround", "encode", "octavo.compress.methods.autoround:AutoRound", blocks=True),
    ),
    lambda method: method.name,
)


def build_encoder(name: str, options: Mapping[str, object]) -> Encoder:
    """An encoder of single matrices with its options. Raises ConfigError."""
    if METHODS.get(name).blocks:
        raise ConfigError(f"{name} encodes whole blocks and can't stand in for another encoder")
    built = _build(name, options)
    if not hasattr(built, "encode"):
        raise InternalError(f"{name} is no encoder")
    return built  # type: ignore[return-value]


def build_block_encoder(name: str, options: Mapping[str, object]) -> BlockEncoder:
    """An encoder of whole blocks with its options. Raises ConfigError."""
    built = _build(name, options)
    if not hasattr(built, "encode_block"):
        raise InternalError(f"{name} is no encoder of blocks")
    return built  # type: ignore[return-value]


def build_preparation(name: str, options: Mapping[str, object]) -> Preparation:
    """A transform of the whole model with its options. Raises ConfigError."""
    built = _build(name, options)
    if not hasattr(built, "prepare"):
        raise InternalError(f"{name} is no preparation")
    return built  # type: ignore[return-value]


def build_transform(name: str, options: Mapping[str, object]) -> Transform:
    """A transform with its options. Raises ConfigError."""
    built = _build(name, options)
    if not hasattr(built, "plan"):
        raise InternalError(f"{name} is no transform")
    return built  # type: ignore[return-value]


def build_pruner(name: str, options: Mapping[str, object]) -> Pruner:
    """A pruner with its options. Raises ConfigError."""
    built = _build(name, options)
    if not hasattr(built, "mask"):
        raise InternalError(f"{name} is no pruner")
    return built  # type: ignore[return-value]


def build_trainer(name: str, options: Mapping[str, object]) -> Trainer:
    """A trainer with its options. Raises ConfigError."""
    built = _build(name, options)
    if not hasattr(built, "train"):
        raise InternalError(f"{name} is no trainer")
    return built  # type: ignore[return-value]


def build(name: str, options: Mapping[str, object]) -> object:
    """A method of any kind, to see whether its options are right. Raises ConfigError."""
    row = METHODS.get(name)
    makers = {
        "prepare": build_preparation, "transform": build_transform, "prune": build_pruner,
        "encode": build_block_encoder if row.blocks else build_encoder, "train": build_trainer,
    }  # fmt: skip
    return makers[row.kind](name, options)


def _build(name: str, options: Mapping[str, object]) -> object:
    module, _, kind = METHODS.get(name).type.partition(":")
    method = getattr(importlib.import_module(module), kind)
    known = [field.name for field in fields(method) if field.init]
    for key in options:
        if key not in known:
            raise ConfigError(f"{name} has no option {key!r}; {nearest(key, known)}")
    try:
        return method(**options)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error


def nearest(word: str, known: list[str]) -> str:
    """What to say of an unknown word: the nearest that is known."""
    if not known:
        return "it has none"
    near = difflib.get_close_matches(word, known, 1, 0.0)[0]
    return f"did you mean {near!r}? (known: {', '.join(sorted(known))})"
