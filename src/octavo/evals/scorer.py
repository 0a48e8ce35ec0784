"""`Scorer`: whatever gives logits for every position of a text; and the adapter of our executors.

Logits come in blocks of a few rows, because a whole window of a large vocabulary is hundreds of
megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from octavo.backends.base import (
    WANT_LOGITS,
    WANT_NOTHING,
    WANT_TOKEN,
    Executor,
    StepBatch,
    StepResult,
)
from octavo.core.errors import UserError

F32 = npt.NDArray[np.float32]
BLOCK_BYTES = 64 << 20


class Scorer(Protocol):
    """Gives next-token logits."""

    @property
    def name(self) -> str: ...

    @property
    def vocab(self) -> int: ...

    def logits(self, tokens: Sequence[int], first: int, rows: int) -> Iterator[F32]:
        """Logits of positions first .. len(tokens) - 1, from an empty context.

        Yields float32 [rows, vocab] (the last block shorter), valid until the next one is asked
        for. Raises UserError when the tokens exceed the context.
        """

    def close(self) -> None: ...


def block_rows(vocab: int) -> int:
    """Rows of a block of logits: as many as 64 MB hold, 1 to 256."""
    return max(1, min(256, BLOCK_BYTES // (4 * vocab)))


class SingleSequence:
    """One sequence in an executor of its own: what scoring and benchmarks drive.

    Blocks are given in order, for every KV group alike; nothing is shared or freed. The pool of a
    group of recent tokens may be smaller: there blocks are used again, the oldest first.
    """

    def __init__(self, executor: Executor) -> None:
        layout, config = executor.layout, executor.config
        self.capacity = min(max(executor.kv_blocks) * layout.block_size, config.context)
        blocks = -(-self.capacity // layout.block_size)
        self.batch = StepBatch(layout, config.max_tokens, 1, blocks)
        for group, pool in enumerate(executor.kv_blocks):
            self.batch.block_table[group, 0, :] = np.arange(blocks, dtype=np.int32) % pool
        self.batch.n_seqs = 1
        self.executor = executor
        self.length = 0

    def restart(self) -> None:
        """Forget the context."""
        self.length = 0

    def step(self, tokens: Sequence[int], want: int, last: bool = False) -> StepResult:
        """Append `tokens` (at most max_tokens) in one step; all rows or the last want `want`."""
        n, batch = len(tokens), self.batch
        if self.length + n > self.capacity:
            raise UserError(
                f"{self.length + n} tokens exceed the context of {self.capacity}: "
                "give a larger --context"
            )
        batch.row_start[1] = n
        batch.token[:n] = tokens
        batch.position[:n] = np.arange(self.length, self.length + n)
        batch.want[:n] = WANT_NOTHING if last else want
        batch.want[n - 1] = want
        self.length += n
        return self.executor.step(batch)

    def prefill(self, tokens: Sequence[int]) -> int:
        """Append a prompt in as few steps as it takes; the greedy next token."""
        chunk = self.executor.config.max_tokens
        cut = (len(tokens) - 1) // chunk * chunk
        self.pass_over(tokens[:cut])
        return int(self.step(tokens[cut:], WANT_TOKEN, last=True).token[0])

    def pass_over(self, tokens: Sequence[int]) -> None:
        """Append tokens whose predictions nobody wants."""
        chunk = self.executor.config.max_tokens
        for begin in range(0, len(tokens), chunk):
            self.step(tokens[begin : begin + chunk], WANT_NOTHING)


class ExecutorScorer:
    """Any backend's executor as a Scorer. Owns the executor: nothing else may step it."""

    def __init__(self, executor: Executor, name: str) -> None:
        self._sequence = SingleSequence(executor)
        self._executor = executor
        self.name = name
        self.vocab = executor.spec.vocab

    def logits(self, tokens: Sequence[int], first: int, rows: int) -> Iterator[F32]:
        buffer = np.empty((rows, self.vocab), np.float32)
        self._sequence.restart()
        self._sequence.pass_over(tokens[:first])
        for begin in range(first, len(tokens), rows):
            block = tokens[begin : begin + rows]
            self._fill(block, buffer)
            yield buffer[: len(block)]

    def _fill(self, block: Sequence[int], buffer: F32) -> None:
        chunk = self._executor.config.max_tokens
        for begin in range(0, len(block), chunk):
            part = block[begin : begin + chunk]
            self._sequence.batch.logits = buffer[begin : begin + len(part)]
            self._sequence.step(part, WANT_LOGITS)

    def close(self) -> None:
        self._executor.close()
