from octavo.train.modules import FakeQuantize, QuantizedLinear, fake_quantize
from octavo.train.qat import QatModel
from octavo.train.trainer import TrainConfig, Trainer

__all__ = [
    "FakeQuantize",
    "QatModel",
    "QuantizedLinear",
    "TrainConfig",
    "Trainer",
    "fake_quantize",
]
