"""Losses that pull a student's distributions to a teacher's, for every predicted token.

P is the teacher's distribution at a position and Q the student's, both softened by a temperature T.
All are in nats times T^2, which keeps the size of the gradient (Hinton, arXiv 1503.02531).

forward  KL(P || Q): the student must cover all that the teacher says
reverse  KL(Q || P): the student must not say what the teacher doesn't
jsd      b KL(P || M) + (1 - b) KL(Q || M) with M = b P + (1 - b) Q (GKD, arXiv 2306.13649): for
         b = 0 and 1, where it would vanish, it stands for forward and reverse
reward   reverse KL by policy gradient, one step at a time (MiniLLM, arXiv 2306.08543, the
         single-step term): a token y that the student wrote weighs grad log Q(y) by
         log Q(y) - log P(y)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from octavo.core.errors import ConfigError, UserError
from octavo.train.data import I64, Batch
from octavo.train.losses import Teacher

Kind = Literal["forward", "reverse", "jsd"]
_LEAST = 1e-30  # probability of what the k likeliest leave: fp32's log of it is finite


@dataclass(frozen=True, slots=True)
class Divergence:
    """Which divergence, and how soft. Raises ConfigError for a value out of range."""

    kind: Kind = "forward"
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("forward", "reverse", "jsd"):
            raise ConfigError(f"divergence {self.kind!r}: give forward, reverse or jsd")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"temperature is {self.temperature}; give a number above 0")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta is {self.beta}; give a number from 0 to 1")

    def of(self, p: Tensor, q: Tensor) -> Tensor:
        """From log-probabilities [..., n] of teacher and student at this temperature, [...]."""
        if self.kind == "forward" or (self.kind == "jsd" and self.beta == 0):
            rows = kl(p, q)
        elif self.kind == "reverse" or self.beta == 1:
            rows = kl(q, p)
        else:
            mixed = torch.logaddexp(p + math.log(self.beta), q + math.log1p(-self.beta))
            rows = self.beta * kl(p, mixed) + (1 - self.beta) * kl(q, mixed)
        return rows * self.temperature**2

    def soften(self, logits: Tensor) -> Tensor:
        """Log-probabilities of logits at this temperature."""
        return torch.log_softmax(logits.float() / self.temperature, dim=-1)

    def recipe(self) -> Mapping[str, object]:
        return {"divergence": self.kind, "beta": self.beta, "temperature": self.temperature}


class DistillLoss:
    """A divergence from a teacher that runs beside the student."""

    def __init__(self, teacher: Teacher, divergence: Divergence | None = None) -> None:
        self._teacher, self._divergence = teacher, divergence or Divergence()

    @property
    def name(self) -> str:
        return self._divergence.kind

    def per_token(self, logits: Tensor, batch: Batch) -> Tensor:
        expected = self._teacher.logits(batch.tokens[:, :-1])
        check_vocabularies(logits.shape[-1], expected.shape[-1])
        soften = self._divergence.soften
        return self._divergence.of(soften(expected), soften(logits))

    def recipe(self) -> Mapping[str, object]:
        return {"loss": "distill", **self._divergence.recipe(), "teacher": self._teacher.digest()}


class StoredTeacher(Protocol):
    """A teacher's k likeliest tokens at every position of the windows it was run on."""

    vocab: int
    temperature: float

    def top(self, tokens: I64) -> tuple[I64, Tensor]:
        """ids int64 [b, n, k] and natural log-probabilities float32 [b, n, k] for windows int64
        [b, n]. Raises UserError for a window that the teacher didn't see."""

    def digest(self) -> str:
        """A hash of what is stored."""


class TopLoss:
    """A divergence from what is stored of a teacher. What its k tokens leave is one more token on
    both sides, so that this is the exact divergence of the coarser distributions, which is at most
    that of the whole ones.

    Raises ConfigError when the temperature isn't the one at which the teacher was stored.
    """

    def __init__(self, teacher: StoredTeacher, divergence: Divergence | None = None) -> None:
        self._teacher, self._divergence = teacher, divergence or Divergence()
        if teacher.temperature != self._divergence.temperature:
            raise ConfigError(
                f"the teacher was stored at temperature {teacher.temperature} and the loss asks "
                f"for {self._divergence.temperature}: store it again, or ask for the same"
            )

    @property
    def name(self) -> str:
        return f"{self._divergence.kind} top"

    def per_token(self, logits: Tensor, batch: Batch) -> Tensor:
        check_vocabularies(logits.shape[-1], self._teacher.vocab)
        ids, p = self._teacher.top(batch.tokens[:, :-1])
        index = torch.as_tensor(ids, device=logits.device)
        q = self._divergence.soften(logits).gather(-1, index)
        return self._divergence.of(_with_rest(p.to(q.device)), _with_rest(q))

    def recipe(self) -> Mapping[str, object]:
        return {"loss": "top", **self._divergence.recipe(), "teacher": self._teacher.digest()}


class RewardLoss:
    """Reverse KL on tokens that the student wrote, as a reward of each. Its expected gradient is
    that of KL(Q || P) at the positions reached; its value estimates that divergence."""

    name = "reward"

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def per_token(self, logits: Tensor, batch: Batch) -> Tensor:
        expected = self._teacher.logits(batch.tokens[:, :-1])
        check_vocabularies(logits.shape[-1], expected.shape[-1])
        written = torch.as_tensor(batch.tokens[:, 1:].copy(), device=logits.device)[..., None]
        q = torch.log_softmax(logits.float(), dim=-1).gather(-1, written)[..., 0]
        p = torch.log_softmax(expected.float(), dim=-1).gather(-1, written)[..., 0]
        cost = (q - p).detach()
        return cost * (q - q.detach()) + cost  # the value is the cost, the gradient the score's

    def recipe(self) -> Mapping[str, object]:
        return {"loss": "reward", "teacher": self._teacher.digest()}


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [..., n] in nats, [...]. What p never says costs nothing."""
    never = torch.isneginf(p)
    terms = p.exp() * (p.masked_fill(never, 0.0) - q.masked_fill(never, 0.0))
    return terms.sum(dim=-1)


def check_vocabularies(student: int, teacher: int) -> None:
    """Raises UserError when the two can't speak of the same tokens."""
    if student != teacher:
        raise UserError(
            f"the student knows {student} tokens and the teacher {teacher}: distillation needs one "
            "vocabulary; take a student with the teacher's tokenizer"
        )


def _with_rest(logprobs: Tensor) -> Tensor:
    """Log-probabilities [..., k] with what they leave as one more, [..., k + 1]."""
    rest = (1 - logprobs.exp().sum(dim=-1, keepdim=True)).clamp_min(_LEAST)
    return torch.cat([logprobs, rest.log()], dim=-1)
