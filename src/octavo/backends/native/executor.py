"""The native `Executor`: one call per step; everything else was settled at load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo import _native
from octavo.backends.base import (
    MAX_LOGPROBS,
    KvLayout,
    Receipt,
    RuntimeConfig,
    StageTimes,
    StepBatch,
    StepCancelled,
    StepResult,
)
from octavo.backends.native.receipt import with_shares
from octavo.core.errors import InternalError, UnsupportedError
from octavo.spec.decoder import DecoderSpec

_DONE, _CANCELLED, _FORKED = 0, 1, 2


class Results:
    """Where native writes; StepResult shows the first n entries of each."""

    def __init__(self, rows: int) -> None:
        self.row = np.zeros(rows, np.int32)
        self.token = np.zeros(rows, np.int32)
        self.logprob = np.zeros(rows, np.float32)
        self.top_token = np.zeros((rows, MAX_LOGPROBS), np.int32)
        self.top_logprob = np.zeros((rows, MAX_LOGPROBS), np.float32)

    def first(self, n: int) -> StepResult:
        return StepResult(
            n, self.row[:n], self.token[:n], self.logprob[:n], self.top_token[:n],
            self.top_logprob[:n],
        )  # fmt: skip


class NativeExecutor:
    """See `Executor`. `cancel` takes effect at the next barrier, and is safe in a signal handler.

    A batch is bound by its arrays' addresses at its first step: write into them, don't replace
    them. Only `logits` and `hidden` may change between steps.
    """

    def __init__(
        self,
        native: _native.Executor,
        spec: DecoderSpec,
        layout: KvLayout,
        config: RuntimeConfig,
        kv_blocks: tuple[int, ...],
        receipt: Receipt,
    ) -> None:
        self.spec, self.layout, self.config, self.kv_blocks = spec, layout, config, kv_blocks
        self._native: _native.Executor | None = native
        self._receipt = receipt
        self._results = Results(config.max_tokens)
        self._bound: StepBatch | None = None

    def step(self, batch: StepBatch) -> StepResult:
        """Raises StepCancelled, InternalError when the batch is invalid (then nothing ran), and
        UnsupportedError when keys or values of its rows exceed what the cache's format holds."""
        return self.step_times(batch, 1)

    def step_times(self, batch: StepBatch, times: int) -> StepResult:
        native = self._open()
        try:
            if batch is not self._bound:
                self._bind(native, batch)
            status = native.step(batch.n_seqs, batch.logits, batch.hidden, times)
        except ValueError as error:
            raise InternalError(f"invalid batch: {error}") from error
        if native.kv_lost:
            raise UnsupportedError(_lost(native.kv_lost, self.config.kv_format))
        if status == _CANCELLED:
            raise StepCancelled("the step was cancelled before it finished")
        if status == _FORKED:
            raise InternalError(
                "this process was forked from the one that loaded the model, and threads don't "
                "survive a fork: load the model in the new process (multiprocessing: 'spawn')"
            )
        return self._results.first(native.wanted)

    def cancel(self) -> None:
        native = self._native  # once: another thread may be closing
        if native is not None:
            native.cancel()

    def clear_cancel(self) -> None:
        native = self._native
        if native is not None:
            native.clear_cancel()

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        native, count = self._open(), self.kv_blocks[group]
        for source, target in pairs:
            if not (0 <= source < count and 0 <= target < count):
                raise InternalError(f"blocks {source} to {target} of group {group}, of {count}")
            native.copy_block(group, source, target)

    def read_blocks(self, group: int, blocks: Sequence[int]) -> bytes:
        out = np.empty(len(blocks) * self.layout.block_bytes[group], np.uint8)
        try:
            self._open().read_blocks(group, np.asarray(blocks, np.int32), out)
        except ValueError as error:
            raise InternalError(f"blocks of group {group}: {error}") from error
        return out.tobytes()

    def write_blocks(self, group: int, blocks: Sequence[int], data: bytes) -> None:
        values = np.frombuffer(data, np.uint8)
        try:
            self._open().write_blocks(group, np.asarray(blocks, np.int32), values)
        except ValueError as error:
            raise InternalError(f"blocks of group {group}: {error}") from error

    def reset_state(self, slot: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        try:
            self._open().reset_slot(
                slot, np.asarray(prompt, np.int32), np.asarray(output, np.int32)
            )
        except ValueError as error:
            raise InternalError(f"invalid state: {error}") from error

    def receipt(self) -> Receipt:
        return self._receipt if self._native is None else with_shares(self._receipt, self._native)

    def stage_times(self) -> StageTimes:
        rows = self._open().stage_seconds()
        return StageTimes(tuple(_native.STAGES), tuple(tuple(row) for row in rows))

    def read_weights(self, passes: int) -> float:
        """Seconds that the threads need to read what a token reads, `passes` times, and do nothing
        with it. Not while a step runs."""
        return self._open().read_weights(passes)

    def close(self) -> None:
        """Frees weights, cache and threads. Idempotent."""
        self._native = None
        self._bound = None

    def _open(self) -> _native.Executor:
        if self._native is None:
            raise InternalError("the executor is closed")
        return self._native

    def _bind(self, native: _native.Executor, batch: StepBatch) -> None:
        if batch.max_tokens > self.config.max_tokens or batch.max_seqs > self.config.max_seqs:
            raise InternalError("the batch is larger than the config that the model was loaded for")
        groups = len(self.layout.groups)
        if batch.block_table.shape != (groups, batch.max_seqs, batch.max_blocks):
            raise InternalError("the batch's block table has the wrong shape")
        native.bind(batch, self._results)
        self._bound = batch


def _lost(count: int, kv_format: str) -> str:
    limits = {
        "fp8_e4m3": "448, the largest of fp8_e4m3",
        "fp8_e5m2": "57344, the largest of fp8_e5m2",
    }
    half = "65504, the largest of fp16"
    limits |= {"fp16": half, "kivi2": half + ", which holds KIVI's minima"}
    limits["kivi4"] = limits["kivi2"]
    why = f"exceed {limits[kv_format]}" if kv_format in limits else "are not finite"
    other = "fp8_e5m2 or bf16" if kv_format == "fp8_e4m3" else "bf16"
    return f"{count} keys or values of this step {why}: use the KV format {other}"
