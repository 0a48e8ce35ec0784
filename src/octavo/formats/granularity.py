"""Over which weights one scale is shared. Shapes below are for a weight of [out=4096, in=1024]."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for everything: scales are [1, 1]."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale per output row: scales are [4096, 1]."""


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale per `size` consecutive inputs of a row: with size=64, scales are [4096, 16]."""

    size: int


@dataclass(frozen=True, slots=True)
class PerToken:
    """One scale per row of activations: for an input of [tokens, 1024], scales are [tokens, 1]."""


Granularity = PerTensor | PerChannel | PerGroup | PerToken
