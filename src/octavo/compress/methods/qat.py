"""Quantization-aware training of what the encoders made (docs/training.md).

The student starts at the encoders' codes and steps, the teacher is the model as it came; the loss
is KL(teacher || student) over the calibration tokens (LLM-QAT, arXiv 2305.17888), and steps are
learned too (LSQ, arXiv 1902.08153). No step of training gives back what the encoders made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from octavo.backends.base import KvFormat
from octavo.compress.base import TrainTask
from octavo.compress.facts import Facts
from octavo.core.errors import ConfigError, FormatError, UserError
from octavo.formats.kivi import KIVI_BITS
from octavo.formats.number_format import FP32
from octavo.formats.quantized import QuantizedTensor
from octavo.spec.decoder import Role
from octavo.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.train.data import Corpus
    from octavo.train.losses import Loss
    from octavo.train.qat import QatModel

I64 = npt.NDArray[np.int64]
_HELD_OUT = 0.1  # of the calibration sequences
_CHECKPOINTS = 4  # in a run: each holds all weights four times over, written and hashed


@dataclass(frozen=True, slots=True)
class Qat:
    """steps            updates; 0 leaves everything as the encoders made it
    learning_rate    the peak, after a twentieth of the steps
    batch, context   windows per update, and tokens in each
    loss             "kl" to the model as it came, or "labels"
    learn_steps      train the encoders' steps, too
    patience         held-out losses (taken 10 times in a run) without a new best that end it early;
                     the best weights are kept. 0: keep the last
    precision        "fp32" or "bf16"
    activations      what training rounds inputs to: "auto" as the weights' kernels do, "a32" not
    kv_format        what it rounds keys and values to
    """

    needs_tokens: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="nothing by itself", choice="learned", format="int4_g64",
        source="arXiv 2305.17888, arXiv 1902.08153",
        synonyms=("quantization-aware training", "lsq", "llm-qat", "fine-tuning", "distillation"),
    )  # fmt: skip

    steps: int = 200
    learning_rate: float = 1e-4
    batch: int = 4
    context: int = 256
    loss: Literal["kl", "labels"] = "kl"
    learn_steps: bool = True
    patience: int = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    activations: Literal["auto", "a32"] = "auto"
    kv_format: KvFormat = "bf16"

    def __post_init__(self) -> None:
        if self.loss not in ("kl", "labels"):
            raise ConfigError(f"qat: loss is {self.loss!r}; give kl or labels")
        if type(self.context) is not int or self.context < 2:
            raise ConfigError(f"qat: context is {self.context!r}; give at least 2")
        if self.activations not in ("auto", "a32"):
            raise ConfigError(f"qat: activations is {self.activations!r}; give auto or a32")
        if self.kv_format not in get_args(KvFormat):
            known = ", ".join(get_args(KvFormat))
            raise ConfigError(f"qat: kv_format is {self.kv_format!r}; give one of {known}")
        if self.kv_format in KIVI_BITS:
            raise ConfigError(
                f"qat: kv_format {self.kv_format} rounds by how old a key is, which training, on "
                "whole texts, doesn't do; give int4 or int8"
            )
        if self.kv_format == "int8_dot":
            raise ConfigError(
                "qat: kv_format int8_dot rounds the softmax too, as training doesn't; give int8"
            )
        self._config(0)

    def train(self, task: TrainTask) -> Mapping[Role, QuantizedTensor | Tensor]:
        from octavo.train.trainer import Trainer

        assert task.tokens is not None
        corpus = cut(task.tokens, self.context)
        student, loss = self._student(task), self._loss(task)
        Trainer(student, corpus, self._config(task.seed), task.directory, loss=loss).run()
        converted = student.convert()
        return {
            **{role: converted[role] for role in task.encoded},
            **{role: student.masters[role].detach().cpu() for role in task.vectors},
        }

    def _config(self, seed: int) -> TrainConfig:
        every = max(1, self.steps // 10)
        return TrainConfig(
            self.steps, self.learning_rate, warmup=self.steps // 20, batch=self.batch,
            evaluate_every=every, checkpoint_every=max(1, self.steps // _CHECKPOINTS),
            patience=self.patience, seed=seed, precision=self.precision,
        )  # fmt: skip

    def _student(self, task: TrainTask) -> QatModel:
        from octavo.backends.reference.options import ReferenceOptions
        from octavo.backends.reference.weights import load_weights
        from octavo.train.qat import QatModel

        masters, _ = load_weights(task.source, task.spec, ReferenceOptions())
        masters |= {role: load() for role, load in task.vectors.items()}
        encodings = {role: encoded.load() for role, encoded in task.encoded.items()}
        anchors = {role: t for role, t in encodings.items() if not t.format.plain and _linear(t)}
        formats = {**dict.fromkeys(masters, FP32), **{r: t.format for r, t in encodings.items()}}
        served = ReferenceOptions(activations=self.activations, kv_format=self.kv_format)
        student = QatModel(task.spec, masters, formats, served, self.learn_steps, anchors=anchors)
        masks = {role: e.mask for role, e in task.encoded.items() if e.mask is not None}
        student.keep_zeros(masks)
        student.freeze(student.coded - task.encoded.keys())
        _check_start(student, encodings)
        return student

    def _loss(self, task: TrainTask) -> Loss:
        from octavo.backends.reference.options import ReferenceOptions
        from octavo.train.losses import Labels, ModelTeacher, TeacherKl
        from octavo.train.qat import QatModel

        if self.loss == "labels":
            return Labels()
        plain = ReferenceOptions(format="fp32")
        return TeacherKl(ModelTeacher(QatModel.load(task.source, task.spec, plain)))


def cut(tokens: I64, context: int) -> Corpus:
    """Windows of sequences int64 [n, length], those of the last tenth of them held out.

    Raises UserError when there are too few sequences, or they are too short.
    """
    from octavo.train.data import Corpus

    length = min(context + 1, tokens.shape[1])
    per_sequence = tokens.shape[1] // length
    held_out = max(1, int(len(tokens) * _HELD_OUT))
    if len(tokens) < 2:
        raise UserError(
            "qat holds out one calibration sequence, and there is one in all: give the recipe's "
            "calibration more sequences"
        )
    windows = tokens[:, : per_sequence * length].reshape(len(tokens), per_sequence, length)
    train, kept = windows[:-held_out], windows[-held_out:]
    return Corpus(train.reshape(-1, length), kept.reshape(-1, length))


def _linear(tensor: QuantizedTensor) -> bool:
    from octavo.train.anchored import Anchor

    try:
        Anchor(tensor)
    except FormatError:
        return False
    return True


def _check_start(student: QatModel, encodings: Mapping[Role, QuantizedTensor]) -> None:
    """A format whose steps are found anew in every pass starts at round to nearest only."""
    converted = student.convert()
    for role, tensor in encodings.items():
        if not np.array_equal(converted[role].dequantize(), tensor.dequantize()):
            raise FormatError(
                f"qat: {role}: training in {tensor.format} starts at round to nearest, and another "
                "method or a transform made it: encode it with rtn, or in an integer format"
            )
