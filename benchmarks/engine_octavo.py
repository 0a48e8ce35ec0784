"""Our executor behind benchmarks' `Engine`, driven step by step as llama-bench drives llama.cpp."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from engines import PROMPT, START, TOGETHER_CONTEXT, TOGETHER_PROMPT, Fields

from octavo.backends.base import WANT_NOTHING, WANT_TOKEN, RuntimeConfig, StepBatch
from octavo.evals.bandwidth import read_bandwidth
from octavo.evals.scorer import SingleSequence
from octavo.evals.throughput import generate

if TYPE_CHECKING:
    from octavo.backends.base import Executor


def runtime_config(setup: Fields) -> RuntimeConfig:
    """From a child's setup: `format`, `context`, and what it says beyond that."""
    sequences = setup.get("sequences", 1)
    return RuntimeConfig(
        context=setup["context"],
        max_seqs=sequences,
        kv_tokens=max(setup["context"], sequences * TOGETHER_CONTEXT if sequences > 1 else 0),
        threads=setup["threads"],
        format=setup["format"],
        keep=tuple((part, name) for part, name in setup.get("keep", ())),
        activations=setup.get("activations", "auto"),
        kv_format=setup.get("kv", "bf16"),
        isa=setup.get("isa", ""),
    )


class Octavo:
    """Keys and values of a prefix stay between tasks; a task overwrites what the last one added."""

    def __init__(self, setup: Fields) -> None:
        from octavo.backends.native.backend import load
        from octavo.io.checkpoint import open_model
        from octavo.io.hub import resolve_model

        with open_model(resolve_model(setup["model"])) as model:
            self.executor: Executor = load(model.spec, model.source, runtime_config(setup))
        self._begin()

    def _begin(self) -> None:
        self.sequence = SingleSequence(self.executor)
        self.prefix = 0  # tokens that the single sequence keeps
        self.together: Together | None = None

    def describe(self) -> dict[str, Any]:
        receipt = self.executor.receipt()
        return {
            "bytes_per_token": receipt.bytes_per_token,
            "packed_bytes": receipt.packed_bytes,
            "isa": receipt.isa,
            "threads": receipt.threads,
            "kv_format": receipt.kv_format,
            "kernels": sorted({use.kernel for use in receipt.kernels}),
            "fallbacks": sorted({use.fallback for use in receipt.kernels if use.fallback}),
            "multiplications_per_row": body_weights(self.executor),
        }

    def prefill(self, tokens: int) -> float:
        self._forget()
        begin = time.perf_counter()
        self.sequence.prefill(range(PROMPT, PROMPT + tokens))
        return time.perf_counter() - begin

    def decode(self, tokens: int, depth: int) -> float:
        if self.together is not None or depth < self.prefix:
            self._forget()
        self.sequence.length = self.prefix
        self.sequence.pass_over(range(PROMPT + self.prefix, PROMPT + depth))
        self.prefix = depth
        begin = time.perf_counter()
        generate(self.sequence, START, tokens)
        return time.perf_counter() - begin

    def decode_together(self, tokens: int, batch: int) -> float:
        if self.together is None:
            self.together = Together(self.executor)
        return self.together.decode(tokens, batch)

    def _forget(self) -> None:
        self.sequence.restart()
        self.prefix, self.together = 0, None

    def probe(self) -> float:
        """Bytes per second of reading as much as a token reads, with as many threads."""
        receipt = self.executor.receipt()
        return read_bandwidth(receipt.bytes_per_token, receipt.threads).bytes_per_second

    def int8_peak(self) -> float:
        """Multiplications and additions per second of bare int8 instructions, as many threads."""
        try:
            roofline = importlib.import_module("octavo.evals.roofline")
        except ImportError as error:
            raise NotImplementedError("this version measures no arithmetic peaks") from error
        peaks: dict[str, float] = roofline.arithmetic_peaks(self.executor.receipt())
        return peaks["int8"]


class OctavoLibrary(Octavo):
    """All that a user's process holds: tokenizer and engine beside the executor."""

    def __init__(self, setup: Fields) -> None:
        from octavo.api import LLM

        config = runtime_config(setup)
        self.llm = LLM(setup["model"], format=setup["format"], config=config)
        self.executor = self.llm.executor
        self._begin()


class Together:
    """Several sequences that step together, each behind its own prompt in its own blocks."""

    def __init__(self, executor: Executor) -> None:
        layout, config = executor.layout, executor.config
        self.executor = executor
        self.blocks = -(-TOGETHER_CONTEXT // layout.block_size)
        self.one = StepBatch(layout, config.max_tokens, 1, self.blocks)
        self.all = StepBatch(layout, config.max_tokens, config.max_seqs, self.blocks)
        for slot in range(config.max_seqs):
            self.all.block_table[:, slot, :] = self._row(slot)
        self.all.row_start[:] = np.arange(config.max_seqs + 1)
        self.filled = 0  # sequences whose prompt is in the cache

    def _row(self, slot: int) -> Any:
        return np.arange(slot * self.blocks, (slot + 1) * self.blocks, dtype=np.int32)

    def decode(self, tokens: int, batch: int) -> float:
        """Seconds of `tokens` steps of the first `batch` sequences."""
        if batch > self.all.max_seqs or TOGETHER_PROMPT + tokens > TOGETHER_CONTEXT:
            raise NotImplementedError(f"{batch} sequences of {tokens} tokens don't fit")
        while self.filled < batch:
            self._fill(self.filled)
            self.filled += 1
        chosen: Sequence[int] = [START + slot for slot in range(batch)]
        begin = time.perf_counter()
        for step in range(tokens):
            chosen = self._step(chosen, TOGETHER_PROMPT + step)
        return time.perf_counter() - begin

    def _fill(self, slot: int) -> None:
        one = self.one
        one.n_seqs, one.row_start[1] = 1, TOGETHER_PROMPT
        one.block_table[:, 0, :] = self._row(slot)
        first = PROMPT + slot * TOGETHER_PROMPT
        one.token[:TOGETHER_PROMPT] = np.arange(first, first + TOGETHER_PROMPT)
        one.position[:TOGETHER_PROMPT] = np.arange(TOGETHER_PROMPT)
        one.want[:TOGETHER_PROMPT] = WANT_NOTHING
        self.executor.step(one)

    def _step(self, tokens: Sequence[int], position: int) -> Sequence[int]:
        together, rows = self.all, len(tokens)
        together.n_seqs = rows
        together.token[:rows] = tokens
        together.position[:rows] = position
        together.want[:rows] = WANT_TOKEN
        chosen: Sequence[int] = self.executor.step(together).token[:rows].tolist()
        return chosen


def body_weights(executor: Executor) -> int:
    """Weights of the linear layers that every row of a prefill passes (all but the head)."""
    from math import prod

    from octavo.spec.graph import role_shape, roles

    spec = executor.spec
    shapes = [role_shape(spec, role) for role in roles(spec) if role.part not in ("embed", "head")]
    return sum(prod(shape) for shape in shapes if len(shape) == 2)
