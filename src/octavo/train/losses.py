"""What training moves towards: a loss for every predicted token, from the logits of a batch.

Distillation by logits is Hinton's (arXiv 1503.02531) with a per-token Kullback-Leibler divergence;
for QAT the teacher is the model before rounding (LLM-QAT, arXiv 2305.17888).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.core.errors import ConfigError, UserError
from octavo.train.data import I64, Batch
from octavo.train.qat import QatModel


class Loss(Protocol):
    """A loss of a student's logits. The trainer means it over tokens, with the batch's weights."""

    @property
    def name(self) -> str:
        """Of its curve: "labels", "kl"."""

    def per_token(self, logits: Tensor, batch: Batch) -> Tensor:
        """float32 [b, n], nats, of float32 logits [b, n, vocab]."""

    def recipe(self) -> Mapping[str, object]:
        """All that its values depend on, as plain data: a run resumes only under an equal one."""


class Teacher(Protocol):
    """Whose predictions a student learns."""

    def logits(self, tokens: I64) -> Tensor:
        """float32 [b, n, vocab] for windows int64 [b, n], without a gradient."""

    def digest(self) -> str:
        """A hash of the teacher."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Negative log-likelihood of the text's own next token."""

    name: str = "labels"

    def per_token(self, logits: Tensor, batch: Batch) -> Tensor:
        targets = torch.as_tensor(batch.tokens[:, 1:].copy(), device=logits.device)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return loss.view(targets.shape)

    def recipe(self) -> Mapping[str, object]:
        return {"loss": self.name}


class TeacherKl:
    """KL(teacher || student) at a temperature, times its square (arXiv 1503.02531, section 2).

    Raises ConfigError for a temperature that isn't positive; UserError, at the first batch, for a
    teacher of another vocabulary.
    """

    name = "kl"

    def __init__(self, teacher: Teacher, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature}; give a positive number")
        self._teacher, self._temperature = teacher, temperature

    def per_token(self, logits: Tensor, batch: Batch) -> Tensor:
        expected = self._teacher.logits(batch.tokens[:, :-1])
        if expected.shape[-1] != logits.shape[-1]:
            raise UserError(
                f"the teacher has a vocabulary of {expected.shape[-1]} tokens and the student one "
                f"of {logits.shape[-1]}: their predictions can't be compared; take a teacher with "
                "the student's tokenizer"
            )
        student = F.log_softmax(self._cooled(logits), dim=-1)
        teacher = F.log_softmax(self._cooled(expected), dim=-1)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
        return divergence * self._temperature**2

    def _cooled(self, logits: Tensor) -> Tensor:
        """Dividing by 1 gives the same bits, and takes a fortieth of a step over 49,152 tokens."""
        hot = logits.float()
        return hot if self._temperature == 1 else hot / self._temperature

    def recipe(self) -> Mapping[str, object]:
        return {
            "loss": self.name,
            "temperature": self._temperature,
            "teacher": self._teacher.digest(),
        }


class Mixed:
    """A weighted sum of losses."""

    def __init__(self, parts: Sequence[tuple[float, Loss]]) -> None:
        if not parts:
            raise ConfigError("a mixture of losses needs at least one")
        self._parts = tuple(parts)

    @property
    def name(self) -> str:
        return " + ".join(f"{share:g} {loss.name}" for share, loss in self._parts)

    def per_token(self, logits: Tensor, batch: Batch) -> Tensor:
        (share, loss), *others = self._parts
        total = share * loss.per_token(logits, batch)
        for share, loss in others:
            total = total + share * loss.per_token(logits, batch)
        return total

    def recipe(self) -> Mapping[str, object]:
        parts = [[share, dict(loss.recipe())] for share, loss in self._parts]
        return {"loss": "mixed", "parts": parts}


class ModelTeacher:
    """A model as it would be served at the moment of construction, its roundings included."""

    def __init__(self, model: QatModel) -> None:
        self._model = model
        with torch.no_grad():
            prepared = model.prepared()
        self._weights = {role: weight.detach().clone() for role, weight in prepared.items()}

    def logits(self, tokens: I64) -> Tensor:
        with torch.no_grad():
            return self._model.logits(tokens, self._weights).view(*tokens.shape, -1)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for role in sorted(self._weights, key=str):
            digest.update(str(role).encode())
            digest.update(self._weights[role].cpu().numpy().tobytes())
        return digest.hexdigest()
