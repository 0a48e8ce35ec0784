"""Octavo runs, compresses and measures the language model you have on the machine you have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo._version import __version__

if TYPE_CHECKING:
    from octavo.api import LLM
    from octavo.backends.base import RuntimeConfig
    from octavo.engine.request import SamplingParams

__all__ = ["LLM", "RuntimeConfig", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    # Imported when asked for (PEP 562): `octavo --help` needs none of them.
    if name == "LLM":
        from octavo.api import LLM

        return LLM
    if name == "RuntimeConfig":
        from octavo.backends.base import RuntimeConfig

        return RuntimeConfig
    if name == "SamplingParams":
        from octavo.engine.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
