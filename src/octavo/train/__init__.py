"""Training-time compression. Needs the extra `torch`."""

from __future__ import annotations

import importlib

# Imported when asked for (PEP 562): importing this package must not import torch.
_EXPORTS = {
    "FakeQuantize": "octavo.train.modules",
    "QatModel": "octavo.train.qat",
    "QuantizedLinear": "octavo.train.modules",
    "TrainConfig": "octavo.train.trainer",
    "Trainer": "octavo.train.trainer",
    "fake_quantize": "octavo.train.modules",
}

__all__ = [
    "FakeQuantize",
    "QatModel",
    "QuantizedLinear",
    "TrainConfig",
    "Trainer",
    "fake_quantize",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'octavo.train' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
