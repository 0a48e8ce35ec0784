"""What integer keys and values do to this very model, measured when it is loaded with them.

The model writes some tokens itself with keys and values in bf16, so that the text is one it finds
likely; then all of them run again with the format that was asked for, on the same weights. Models
with a few large key channels lose many times what others lose, and nobody can tell before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo import _native
from octavo.backends.base import F32, WANT_LOGITS, WANT_TOKEN, KvFormat, StepBatch
from octavo.backends.native.executor import Results

TOKENS = 48  # a few hundred milliseconds of a small model, two seconds of a billion weights
MEASURED: tuple[KvFormat, ...] = ("int8", "int4")  # the others cost at most 0.00004 (KL)
WARN_TOP = 0.9  # fewer same top tokens are a warning,
COLLAPSED_TOP = 0.5  # and fewer than half a collapse, as of weights (io/collapse.py)
Build = Callable[[KvFormat], tuple[_native.Executor, StepBatch]]


@dataclass(frozen=True, slots=True)
class KvCost:
    """KL(bf16 keys and values || these) in nats, and the share of equal top tokens, at `tokens`
    positions."""

    format: KvFormat
    tokens: int
    kl: float
    same_top: float

    @property
    def note(self) -> str:
        """What the receipt says."""
        figures = (
            f"mean KL {self.kl:.2g} from bf16 keys and values, same top token {self.same_top:.0%} "
            f"(at load, {self.tokens} tokens of its own)"
        )
        if self.same_top < COLLAPSED_TOP:
            return f"WARNING: KV {self.format} collapses this model: {figures}; use bf16"
        if self.same_top < WARN_TOP:
            other = "int8 or bf16" if self.format == "int4" else "bf16"
            return f"WARNING: KV {self.format} costs this model visibly: {figures}; try {other}"
        return f"KV {self.format}: {figures}"


def measure(build: Build, format: KvFormat, vocab: int) -> KvCost:
    """`build` gives an executor of the same weights and a batch, for TOKENS rows of one sequence
    at most."""
    tokens, before = write(*build("bf16"), vocab)
    after = read(*build(format), vocab, tokens)
    p, q = log_softmax(before), log_softmax(after)
    kl = float((np.exp(p) * (p - q)).sum(1).mean())
    same = float((before.argmax(1) == after.argmax(1)).mean())
    return KvCost(format, len(tokens), kl, same)


def write(native: _native.Executor, batch: StepBatch, vocab: int) -> tuple[list[int], F32]:
    """TOKENS tokens, the first from the middle of the vocabulary, the others drawn; the logits
    behind each."""
    results, logits = Results(TOKENS), np.empty((TOKENS, vocab), np.float32)
    native.bind(batch, results)
    batch.n_seqs, batch.row_start[1] = 1, 1
    batch.want[0], batch.temperature[0] = WANT_TOKEN | WANT_LOGITS, 1.0
    tokens = [vocab // 2]
    for position in range(TOKENS):
        batch.token[0], batch.position[0] = tokens[-1], position
        native.step(1, logits[position : position + 1], None)
        tokens.append(int(results.token[0]))
    return tokens[:TOKENS], logits


def read(native: _native.Executor, batch: StepBatch, vocab: int, tokens: list[int]) -> F32:
    """The logits behind each of `tokens`, in one step."""
    logits = np.empty((len(tokens), vocab), np.float32)
    native.bind(batch, Results(TOKENS))
    batch.n_seqs, batch.row_start[1] = 1, len(tokens)
    batch.token[:], batch.position[:] = tokens, np.arange(TOKENS)
    batch.want[:] = WANT_LOGITS
    native.step(1, logits, None)
    return logits


def log_softmax(logits: F32) -> npt.NDArray[np.float64]:
    """Of each row, in fp64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(1, keepdims=True)))
