"""On-policy distillation: part of every batch is what the student itself writes (GKD, arXiv
2306.13649, algorithm 1; MiniLLM's sampling, arXiv 2306.08543).

A window that the student writes keeps its first tokens from the text as prompt; the rest is sampled
from the student as it stands, and only that counts. No gradient passes through the sampling. Which
windows those are, and what they draw, follows from (seed, windows of the batch) alone, so that a
run that is taken up again goes on as it would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from octavo.core.errors import ConfigError
from octavo.core.rng import uniform_array
from octavo.train.data import I64, Batch, Corpus
from octavo.train.generate import Writing

Writer = Callable[[I64, Writing], I64]
_KIND_MIX = 18  # Philox draws that choose who writes a window


@dataclass(frozen=True, slots=True)
class Policy:
    """share of windows that the student writes (GKD's lambda), behind `prompt` tokens of the text,
    at a temperature. Raises ConfigError for a value out of range."""

    share: float = 0.5
    prompt: int = 16
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share is {self.share}; give a number from 0 to 1")
        if self.prompt < 1 or self.temperature <= 0:
            raise ConfigError("prompt is at least 1 token, and temperature above 0")


@dataclass(frozen=True, slots=True)
class PolicyCorpus(Corpus):
    """A corpus whose training windows the student writes in part. Held-out windows stay text.

    writer  int64 [b, prompt] -> [b, context + 1], by the student as it stands
    """

    policy: Policy = Policy()
    writer: Writer | None = None

    def training(self, rows: I64) -> Batch:
        batch = Corpus.training(self, rows)
        own = self._own(rows)
        if not own.any() or self.writer is None:
            return batch
        policy, tokens, weights = self.policy, batch.tokens.copy(), batch.weights.copy()
        length = tokens.shape[1] - policy.prompt
        if length < 1:
            raise ConfigError(f"a prompt of {policy.prompt} leaves nothing of the window to write")
        writing = Writing(length, policy.temperature, seed=self._seed(rows))
        tokens[own] = self.writer(tokens[own][:, : policy.prompt], writing)
        weights[own] = 1.0
        weights[own, : policy.prompt - 1] = 0.0  # the prompt is the text's, not the student's
        return Batch(tokens, weights)

    def digest(self) -> str:
        digest = hashlib.sha256(Corpus.digest(self).encode())
        digest.update(repr(sorted(asdict(self.policy).items())).encode())
        return digest.hexdigest()

    def _own(self, rows: I64) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        draws = uniform_array(self.policy.seed, np.asarray(rows), 0, _KIND_MIX)
        return np.asarray(draws < self.policy.share)

    def _seed(self, rows: I64) -> int:
        text = f"{self.policy.seed} {rows.tolist()}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:7], "little")
