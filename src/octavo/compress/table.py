"""Which methods there are. Strings only: a method's module is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, NamedTuple

from octavo.compress.base import Encoder, Pruner, Trainer, Transform
from octavo.core.errors import ConfigError, InternalError
from octavo.core.registry import Registry

Kind = Literal["transform", "prune", "encode", "train"]
KINDS: tuple[Kind, ...] = ("transform", "prune", "encode", "train")  # their order in a recipe


class Method(NamedTuple):
    """A row of the table; `type` is "module:Class", a dataclass whose fields are its options.

    encoder  of all other kinds: the one that its paper goes with.
    """

    name: str
    kind: Kind
    type: str
    encoder: str = "rtn"


METHODS = Registry(
    "compression method",
    (
        Method("rtn", "encode", "octavo.compress.methods.rtn:Rtn"),
        Method("cast", "encode", "octavo.compress.methods.cast:Cast"),
        Method("gptq", "encode", "octavo.compress.methods.gptq:Gptq"),
        Method("searched", "encode", "octavo.compress.methods.searched:Searched"),
        Method("hqq", "encode", "octavo.compress.methods.hqq:Hqq"),
        Method("kmeans", "encode", "octavo.compress.methods.kmeans:KMeans"),
        Method("awq", "transform", "octavo.compress.methods.awq:Awq", "awq_clip"),
        Method("awq_clip", "encode", "octavo.compress.methods.awq_clip:AwqClip"),
        Method("smoothquant", "transform", "octavo.compress.methods.smoothquant:SmoothQuant"),
        Method("qat", "train", "octavo.compress.methods.qat:Qat"),
        Method("magnitude", "prune", "octavo.compress.methods.magnitude:Magnitude"),
        Method("wanda", "prune", "octavo.compress.methods.wanda:Wanda"),
        Method("sparsegpt", "encode", "octavo.compress.methods.sparsegpt:SparseGpt"),
    ),
    lambda method: method.name,
)


def build_encoder(name: str, options: Mapping[str, object]) -> Encoder:
    """An encoder with its options. Raises ConfigError."""
    built = _build(name, options)
    if not hasattr(built, "encode"):
        raise InternalError(f"{name} is no encoder")
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
    makers = {
        "transform": build_transform, "prune": build_pruner, "encode": build_encoder,
        "train": build_trainer,
    }  # fmt: skip
    return makers[METHODS.get(name).kind](name, options)


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
