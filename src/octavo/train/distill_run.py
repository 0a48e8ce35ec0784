"""One distillation from a teacher's weights to a student with fewer of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.backends.base import RuntimeConfig
from octavo.backends.reference.options import ReferenceOptions
from octavo.formats.number_format import FP32
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec
from octavo.train.config import TrainConfig, TrainReport
from octavo.train.data import Corpus, split_corpus
from octavo.train.distill import DistillLoss, Divergence
from octavo.train.generate import student_writer
from octavo.train.losses import ModelTeacher
from octavo.train.policy import Policy, PolicyCorpus
from octavo.train.qat import QatModel
from octavo.train.students import drop_layers, evenly
from octavo.train.trainer import Trainer

_PROMPT = 8  # least tokens of the text before what the student writes


@dataclass(frozen=True, slots=True)
class DistillPlan:
    """keep       layers of the student, evenly spread over the teacher's
    on_policy  share of windows that the student writes
    """

    keep: int
    train: TrainConfig
    divergence: Divergence = field(default_factory=Divergence)
    on_policy: float = 0.0
    context: int = 128


def distil(
    source: WeightSource, spec: DecoderSpec, plan: DistillPlan, tokens: Sequence[int]
) -> tuple[QatModel, TrainReport]:
    """The student after training on `tokens`, whose last tenth is held out and judged by forward
    KL. Raises ConfigError for a number of layers that the teacher doesn't have."""
    teacher = QatModel.load(source, spec, ReferenceOptions(format="fp32"))
    smaller, masters = drop_layers(spec, teacher.masters, evenly(len(spec.layers), plan.keep))
    student = QatModel(smaller, masters, dict.fromkeys(masters, FP32), teacher.options)
    taught = ModelTeacher(teacher)
    corpus = _corpus(student, plan, split_corpus(tokens, plan.context))
    loss, watched = DistillLoss(taught, plan.divergence), DistillLoss(taught)
    report = Trainer(student, corpus, plan.train, loss=loss, watched=watched).run()
    return student, report


def _corpus(student: QatModel, plan: DistillPlan, text: Corpus) -> Corpus:
    if not plan.on_policy:
        return text
    window = plan.context + 1
    runtime = RuntimeConfig(context=window, max_seqs=8, kv_tokens=8 * (window + 16), threads=1)
    policy = Policy(plan.on_policy, max(_PROMPT, plan.context // 8))
    writer = student_writer(student, runtime)
    return PolicyCorpus(text.train, text.held_out, policy=policy, writer=writer)
