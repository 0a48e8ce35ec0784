"""Octavo runs, compresses and measures the language model you have on the machine you have."""

from __future__ import annotations

import importlib

from octavo._version import __version__

# Imported when asked for (PEP 562): `octavo --help` needs none of them, and a module low in the
# layers that says `from octavo import ...` must not reach the top. Types: __init__.pyi.
_EXPORTS = {
    "LLM": "octavo.api",
    "RuntimeConfig": "octavo.backends.base",
    "SamplingParams": "octavo.engine.request",
}

__all__ = ["LLM", "RuntimeConfig", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
