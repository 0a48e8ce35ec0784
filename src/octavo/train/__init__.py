"""Training-time compression. Needs the extra `torch`."""

from __future__ import annotations

import importlib

# Imported when asked for (PEP 562): importing this package must not import torch.
_EXPORTS = {
    "FakeQuantize": "octavo.train.modules",
    "Labels": "octavo.train.losses",
    "LoraConfig": "octavo.train.lora",
    "Loss": "octavo.train.losses",
    "Mixed": "octavo.train.losses",
    "ModelTeacher": "octavo.train.losses",
    "QatModel": "octavo.train.qat",
    "QuantizedLinear": "octavo.train.modules",
    "Teacher": "octavo.train.losses",
    "TeacherKl": "octavo.train.losses",
    "TrainConfig": "octavo.train.trainer",
    "Trainer": "octavo.train.trainer",
    "fake_quantize": "octavo.train.modules",
}

__all__ = [
    "FakeQuantize",
    "Labels",
    "LoraConfig",
    "Loss",
    "Mixed",
    "ModelTeacher",
    "QatModel",
    "QuantizedLinear",
    "Teacher",
    "TeacherKl",
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
