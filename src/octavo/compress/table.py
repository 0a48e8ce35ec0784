"""Which methods there are. Strings only: a method's module is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Literal, NamedTuple

from octavo.compress.base import Encoder, Transform
from octavo.core.errors import ConfigError, InternalError
from octavo.core.registry import Registry

Kind = Literal["transform", "encode"]


class Method(NamedTuple):
    """A row of the table; `type` is "module:Class", a dataclass whose fields are its options.

    encoder  of a transform: the one that its paper goes on with.
    """

    name: str
    kind: Kind
    type: str
    encoder: str = "rtn"


METHODS = Registry(
    "compression method",
    (
        Method("rtn", "encode", "octavo.compress.methods.rtn:Rtn"),
        Method("gptq", "encode", "octavo.compress.methods.gptq:Gptq"),
        Method("hqq", "encode", "octavo.compress.methods.hqq:Hqq"),
        Method("kmeans", "encode", "octavo.compress.methods.kmeans:KMeans"),
        Method("awq", "transform", "octavo.compress.methods.awq:Awq", "awq_clip"),
        Method("awq_clip", "encode", "octavo.compress.methods.awq_clip:AwqClip"),
        Method("smoothquant", "transform", "octavo.compress.methods.smoothquant:SmoothQuant"),
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
