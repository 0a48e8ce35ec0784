"""A model without phrases teaches one with them: a target for every phrase at every place.

Labels tell of a place only which token came. The base model, which has read the same characters,
knows a distribution. A token is reached by a first part, chosen among all first parts, and at every
token on its way by a choice of what is next (`octavo.vocab.phrase_tree`). Both models have a
probability for each of these choices: the base model its own of the next part, the student sums of
tokens' probabilities. The Kullback-Leibler divergences of the choices on the way of the token that
came add up, in the mean over the text, to that between the models' distributions of tokens (the
chain rule). A first part that would have made the token before it a longer one can't come: the base
model's probabilities are those of the others.

How the rest of a choice is shared (to stop, or a phrase that goes on by several parts at once) no
single place tells: labels beside this loss do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.io.phrases import PhraseTable
from octavo.train.data import I64, Batch
from octavo.train.losses import Teacher
from octavo.vocab.phrase_tree import Choice, PhraseTree

_NEVER = -1e4  # a log-probability whose exponential is 0 and that times 0 is 0
_LEAST = 1e-20  # of a probability whose logarithm is taken: float32 holds it, a sum of many too


@dataclass(frozen=True, slots=True)
class Alignment:
    """Windows of a student as the base model reads them.

    tokens  int64 [b, m]: their parts, the last one repeated up to the longest window
    ends    int64 [b, n + 1]: where the last part of each token is
    """

    tokens: I64
    ends: I64


def align(windows: I64, phrases: PhraseTable) -> Alignment:
    """Of int64 [b, n + 1] tokens."""
    split = [[phrases.parts(token) for token in row] for row in windows.tolist()]
    ends = np.array([np.cumsum([len(parts) for parts in row]) - 1 for row in split])
    rows = [[part for parts in row for part in parts] for row in split]
    longest = max(map(len, rows))
    tokens = [row + row[-1:] * (longest - len(row)) for row in rows]
    return Alignment(np.array(tokens, np.int64), ends)


class PhraseKl:
    """KL(base model || student) of what comes, in nats per token of the student."""

    name = "phrase kl"

    def __init__(self, teacher: Teacher, phrases: PhraseTable) -> None:
        """teacher: the base model, of a vocabulary of `phrases.first` tokens."""
        self._teacher, self._phrases, self._tree = teacher, phrases, PhraseTree(phrases)
        self._first = torch.tensor([parts[0] for parts in phrases.phrases], dtype=torch.int64)

    def per_token(self, logits: Tensor, batch: Batch) -> Tensor:
        aligned = align(batch.tokens, self._phrases)
        expected = torch.log_softmax(self._teacher.logits(aligned.tokens).float(), dim=-1)
        found = torch.softmax(logits.float(), dim=-1)
        rows = torch.arange(len(batch.tokens))[:, None]
        read = expected[rows, torch.from_numpy(aligned.ends[:, :-1])]
        first = self._first_parts(self._possible(read, batch.tokens[:, :-1]), found)
        places = self._places(batch.tokens, aligned)
        if not len(places.tokens):
            return first
        later = self._choices(expected.flatten(0, 1), found.flatten(0, 1), places)
        return first + later.view(first.shape)

    def recipe(self) -> Mapping[str, object]:
        return {
            "loss": self.name,
            "phrases": self._phrases.to_json(),
            "teacher": self._teacher.digest(),
        }

    def _possible(self, expected: Tensor, tokens: I64) -> Tensor:
        """Log-probabilities [b, n, vocab] of what is next where a token has just ended: nothing
        that would have made it a longer one."""
        places, parts = [], []
        for place, token in enumerate(tokens.ravel().tolist()):
            if (choice := self._tree.choices.get(token)) is not None:
                places.append(np.full(len(choice.parts), place))
                parts.append(choice.parts)
        if not places:
            return expected
        possible = expected.flatten(0, 1).clone()
        at = torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(parts))
        possible[at] = _NEVER
        return torch.log_softmax(possible, dim=-1).view_as(expected)

    def _first_parts(self, expected: Tensor, found: Tensor) -> Tensor:
        """Of log-probabilities [b, n, vocab] and probabilities [b, n, vocab + phrases]: [b, n]."""
        sums = sum_first_parts(found, self._first, self._phrases.first)
        return (expected.exp() * (expected - sums.clamp_min(_LEAST).log())).sum(dim=-1)

    def _places(self, windows: I64, aligned: Alignment) -> _Places:
        found: list[tuple[int, int, int]] = []
        count, width = windows.shape[1] - 1, aligned.tokens.shape[1]
        for row, tokens in enumerate(windows[:, 1:].tolist()):
            for at, token in enumerate(tokens):
                read = row * width + int(aligned.ends[row, at])
                for step, size in self._tree.chosen(token):
                    found.append((row * count + at, read + size, step))
        places = np.array(found, np.int64).reshape(-1, 3)
        return _Places(places[:, 0], places[:, 1], places[:, 2])

    def _choices(self, expected: Tensor, found: Tensor, places: _Places) -> Tensor:
        """Of log-probabilities [b * m, vocab] and probabilities [b * n, vocab + phrases]: their
        divergences, added up at the places of the student, [b * n]."""
        choices = [self._tree.choices[token] for token in places.tokens.tolist()]
        sizes = np.array([len(choice.parts) + 1 for choice in choices])
        slots = np.cumsum(sizes) - sizes  # of each choice's first class
        wanted = self._expected(expected, places, choices)
        counts = [len(choice.tokens) for choice in choices]
        classes = np.concatenate([c.classes for c in choices]) + np.repeat(slots, counts)
        own = found[
            torch.from_numpy(np.repeat(places.student, counts)),
            torch.from_numpy(np.concatenate([choice.tokens for choice in choices])),
        ]
        sums = own.new_zeros(int(sizes.sum())).index_add(0, torch.from_numpy(classes), own)
        sums = sums.clamp_min(_LEAST)
        of = torch.from_numpy(np.repeat(np.arange(len(choices)), sizes))
        whole = sums.new_zeros(len(choices)).index_add(0, of, sums)
        gaps = wanted * (wanted.clamp_min(_LEAST).log() - sums.log() + whole.log()[of])
        at = torch.from_numpy(np.repeat(places.student, sizes))
        return gaps.new_zeros(len(found)).index_add(0, at, gaps)

    def _expected(self, logs: Tensor, places: _Places, choices: Sequence[Choice]) -> Tensor:
        """The base model's probabilities of all classes, one choice after the other."""
        counts = [len(choice.parts) for choice in choices]
        rows = torch.from_numpy(np.repeat(places.teacher, counts))
        parts = torch.from_numpy(np.concatenate([choice.parts for choice in choices]))
        of = np.repeat(np.arange(len(choices)), counts)
        likely = logs[rows, parts].exp()
        rest = 1 - likely.new_zeros(len(choices)).index_add(0, torch.from_numpy(of), likely)
        # the rest's slot is the last of each choice
        order = np.argsort(np.concatenate([of, np.arange(len(choices))]), kind="stable")
        return torch.cat([likely, rest.clamp_min(0)])[torch.from_numpy(order)]


@dataclass(frozen=True, slots=True)
class _Places:
    """Choices on the ways of a batch's tokens: where the student predicts and where the base model
    has read up to the token (places in flattened windows), and the token; int64 [n] each."""

    student: I64
    teacher: I64
    tokens: I64


def sum_first_parts(found: Tensor, first: Tensor, vocab: int) -> Tensor:
    """Probabilities of what a token begins with, [..., vocab], from those of tokens [..., vocab +
    phrases], phrase i beginning with first[i]."""
    return found[..., :vocab].index_add(-1, first, found[..., vocab:])
