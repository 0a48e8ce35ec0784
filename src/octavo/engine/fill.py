"""Plans become the executor's preallocated arrays, at a few microseconds a sequence.

What stays the same while a sequence runs (sampling parameters, seed, bias list) is written once
into its slot when it begins, and gathered from the slots only when the step's sequences change.
"""

from __future__ import annotations

import math

import numpy as np

from octavo.backends.base import (
    F32,
    I32,
    MAX_BIAS,
    WANT_LOGPROBS,
    WANT_NORMED,
    WANT_NOTHING,
    WANT_TARGET,
    WANT_TOKEN,
    Executor,
    StepBatch,
)
from octavo.core.errors import InternalError, RequestError
from octavo.engine.blocks import Lease
from octavo.engine.request import Request
from octavo.engine.sequence import Chunk, Sequence, StepPlan

_PER_SLOT = (
    "state_slot", "seed", "choice", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "n_logprobs",
)  # fmt: skip


class Filler:
    """Owns the batch of an executor and what its slots hold."""

    def __init__(self, executor: Executor, max_blocks: int) -> None:
        config = executor.config
        self._executor = executor
        self.batch = StepBatch(
            executor.layout, config.max_tokens, config.max_seqs, max_blocks, executor.spec.vocab
        )
        self._columns = tuple(getattr(self.batch, name) for name in _PER_SLOT)
        self._slots = tuple(np.zeros_like(column) for column in self._columns)
        empty = (np.zeros(0, np.int32), np.zeros(0, np.float32))
        self._bias: list[tuple[I32, F32]] = [empty] * config.max_seqs
        self._held_back: set[Sequence] = set()  # those that may not stop yet (min_tokens)
        self._choices = [0] * config.max_seqs  # of the sequence in each slot
        self._order: list[int] = []  # slots of the previous step's sequences
        self._tables = [-1] * config.max_seqs  # stamp of the block table that each row holds

    def fill(self, plan: StepPlan) -> StepBatch:
        """Lay out the plan. The batch is valid until the next call."""
        for sequence in plan.admitted:
            self._begin(sequence)
        stale = bool(plan.admitted) | self._release_held_back() | self._rename(plan.chunks)
        self._fill_rows(plan.chunks)
        order = [chunk.sequence.slot for chunk in plan.chunks]
        if stale or order != self._order:
            self._gather(order)
        return self.batch

    def _rename(self, chunks: list[Chunk]) -> bool:
        """A sequence whose own choice was aborted before others forked off goes on as the next."""
        renamed = [
            c.sequence for c in chunks if c.sequence.choice != self._choices[c.sequence.slot]
        ]
        for sequence in renamed:
            self._begin(sequence)
        return bool(renamed)

    def _begin(self, sequence: Sequence) -> None:
        params, slot = sequence.request.params, sequence.slot
        self._choices[slot] = sequence.choice
        state_slot = slot if params.penalized else -1
        values = (
            state_slot, params.seed or 0, sequence.choice, params.temperature, params.top_k,
            params.top_p, params.min_p, params.repetition_penalty, params.presence_penalty,
            params.frequency_penalty, params.logprobs or 0,
        )  # fmt: skip
        for column, value in zip(self._slots, values, strict=True):
            column[slot] = value
        self._set_bias(sequence)
        if params.penalized:
            n_prompt = sequence.n_prompt
            self._executor.reset_state(slot, sequence.request.prompt, sequence.tokens[n_prompt:])

    def _set_bias(self, sequence: Sequence) -> None:
        pairs = list(sequence.request.params.logit_bias)
        if sequence.n_output < sequence.request.params.min_tokens and sequence.stops:
            pairs += [(token, -math.inf) for token in sorted(sequence.stops)]
            self._held_back.add(sequence)
        tokens = np.array([token for token, _ in pairs], np.int32)
        self._bias[sequence.slot] = tokens, np.array([value for _, value in pairs], np.float32)

    def _release_held_back(self) -> bool:
        """Give the stop tokens back to those that have their min_tokens now."""
        due = [s for s in self._held_back if s.slot < 0 or self._may_stop(s)]
        for sequence in due:
            self._held_back.remove(sequence)
            if sequence.slot >= 0:
                self._set_bias(sequence)
        return bool(due)

    def _may_stop(self, sequence: Sequence) -> bool:
        return sequence.n_output >= sequence.request.params.min_tokens

    def _fill_rows(self, chunks: list[Chunk]) -> None:
        batch = self.batch
        tokens: list[int] = []
        positions: list[int] = []
        starts = [0]
        for index, chunk in enumerate(chunks):
            sequence, stop = chunk.sequence, chunk.start + chunk.size
            tokens += sequence.tokens[chunk.start : stop]
            positions += range(chunk.start, stop)
            starts.append(len(tokens))
            if sequence.lease.stamp != self._tables[index]:
                self._lay_table(index, sequence.lease)
        n_rows = len(tokens)
        batch.n_seqs = len(chunks)
        batch.token[:n_rows] = tokens
        batch.position[:n_rows] = positions
        batch.row_start[: len(starts)] = starts
        self._fill_wants(chunks, starts)

    def _lay_table(self, index: int, lease: Lease) -> None:
        blocks = lease.blocks
        self.batch.block_table[:, index, : blocks.shape[1]] = blocks
        self._tables[index] = lease.stamp

    def _fill_wants(self, chunks: list[Chunk], starts: list[int]) -> None:
        batch = self.batch
        wants = [WANT_NOTHING] * starts[-1]
        for index, chunk in enumerate(chunks):
            params = chunk.sequence.request.params
            more = WANT_NOTHING if params.logprobs is None else WANT_LOGPROBS
            if chunk.sequence.request.pooled:
                wants[starts[index] : starts[index + 1]] = [WANT_NORMED] * chunk.size
                self._make_room_for_states()
            elif chunk.samples:
                wants[starts[index + 1] - 1] = WANT_TOKEN | more
            for position in chunk.scored:
                row = starts[index] + position - chunk.start
                wants[row] = WANT_TARGET | more
                batch.target[row] = chunk.sequence.request.prompt[position + 1]
        batch.want[: starts[-1]] = wants

    def _make_room_for_states(self) -> None:
        if self.batch.hidden is None:
            width = self._executor.spec.hidden
            self.batch.hidden = np.zeros((self.batch.max_tokens, width), np.float32)

    def _gather(self, order: list[int]) -> None:
        count = len(order)
        for column, slots in zip(self._columns, self._slots, strict=True):
            column[:count] = slots[order]
        batch, start = self.batch, 0
        batch.bias_start[0] = 0
        for index, slot in enumerate(order):
            tokens, values = self._bias[slot]
            stop = start + tokens.size
            batch.bias_token[start:stop], batch.bias_value[start:stop] = tokens, values
            batch.bias_start[index + 1] = start = stop
        self._order = order


def check_bias(request: Request) -> None:
    """Raises RequestError when bias and held-back stop tokens exceed a sequence's bias list."""
    held_back = len(request.stops) if request.params.min_tokens else 0
    if len(request.params.logit_bias) + held_back > MAX_BIAS:
        raise RequestError(
            f"logit_bias has {len(request.params.logit_bias)} entries, and min_tokens needs"
            f" {held_back} more; at most {MAX_BIAS} fit",
            param="logit_bias",
        )


def max_blocks(context: int, block_size: int) -> int:
    """Blocks of the longest sequence."""
    if context < 1 or block_size < 1:
        raise InternalError(f"context {context} and block size {block_size} must be resolved")
    return -(-context // block_size)
