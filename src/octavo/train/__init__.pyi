from octavo.train.lora import LoraConfig
from octavo.train.losses import Labels, Loss, Mixed, ModelTeacher, Teacher, TeacherKl
from octavo.train.modules import FakeQuantize, QuantizedLinear, fake_quantize
from octavo.train.qat import QatModel
from octavo.train.trainer import TrainConfig, Trainer

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
