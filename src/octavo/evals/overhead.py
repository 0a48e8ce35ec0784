"""The engine's own time per step: what remains when the executor does nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.backends.base import (
    MAX_LOGPROBS,
    KvGroup,
    KvLayout,
    Receipt,
    RuntimeConfig,
    StepBatch,
    StepResult,
)
from octavo.engine.engine import Engine
from octavo.engine.request import Request, SamplingParams
from octavo.spec.decoder import AttentionSpec, DecoderSpec, DenseMlp, LayerSpec, RopeSpec

SEQUENCES = (1, 8, 32)
WINDOWS = (None, 512)  # two KV groups, as models of mixed attention have
STEP_SECONDS, SEQUENCE_SECONDS = 100e-6, 5e-6  # the budget
_VOCAB = 32
_PROMPT = 40
_STEPS, _STRETCHES = 25, 40  # steps of a stretch; the best stretch counts


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds per decode step of `sequences`: the shortest and the middle of the stretches."""

    sequences: int
    best: float
    median: float

    @property
    def budget(self) -> float:
        return STEP_SECONDS + SEQUENCE_SECONDS * self.sequences


class NullExecutor:
    """Does nothing, at once. Every sampled token is 0. See `Executor`."""

    def __init__(self, config: RuntimeConfig, kv_blocks: int, windows: tuple[int | None, ...]):
        self.config, self.kv_blocks = config, (kv_blocks,) * len(windows)
        layer = LayerSpec(AttentionSpec(1, 1, 2, 1.0, RopeSpec(1e4, 2)), DenseMlp(2))
        self.spec = DecoderSpec("null", _VOCAB, 2, (layer,), 1e-5, config.context, True)
        groups = tuple(KvGroup((i,), 1, 2, window) for i, window in enumerate(windows))
        size = config.block_size
        self.layout = KvLayout(groups, size, "fp32", "null", (16 * size,) * len(groups))
        self._result = StepResult(
            token=np.zeros(config.max_tokens, np.int32),
            logprob=np.zeros(config.max_tokens, np.float32),
            top_token=np.zeros((config.max_tokens, MAX_LOGPROBS), np.int32),
            top_logprob=np.zeros((config.max_tokens, MAX_LOGPROBS), np.float32),
        )

    def step(self, batch: StepBatch) -> StepResult:
        rows = int(batch.row_start[batch.n_seqs])
        self._result.n = int(np.count_nonzero(batch.want[:rows]))
        return self._result

    def cancel(self) -> None:
        pass

    def clear_cancel(self) -> None:
        pass

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        pass

    def read_blocks(self, group: int, blocks: Sequence[int]) -> bytes:
        return bytes(len(blocks) * self.layout.block_bytes[group])

    def write_blocks(self, group: int, blocks: Sequence[int], data: bytes) -> None:
        pass

    def reset_state(self, slot: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        pass

    def receipt(self) -> Receipt:
        return Receipt("null", "none", 0, "fp32", 0, 0, (), requantized=False)

    def close(self) -> None:
        pass


def decoding(sequences: int) -> Engine:
    """An engine in which so many sequences decode, and the executor takes no time."""
    context = 2048
    config = RuntimeConfig(max_tokens=512, max_seqs=sequences, context=context, block_size=16)
    blocks = sequences * (context // config.block_size + 2)
    engine = Engine(NullExecutor(config, blocks, WINDOWS))
    params = SamplingParams(max_tokens=context - _PROMPT - 1, ignore_eos=True)
    for i in range(sequences):
        engine.submit(Request(str(i), (1,) * _PROMPT, params))
    while len(engine.step()) < sequences:  # until all prompts are computed
        pass
    return engine


def measure_overhead(
    sequences: Sequence[int] = SEQUENCES,
    stretches: int = _STRETCHES,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Overhead]:
    """Of decode steps without sampling options, the engine alone: no client, no text. `stretches`
    of 25 steps each, at most 75 (then the answers end)."""
    return [_overhead(decoding(count), count, stretches, clock) for count in sequences]


def _overhead(
    engine: Engine, sequences: int, stretches: int, clock: Callable[[], float]
) -> Overhead:
    found: list[float] = []
    for _ in range(stretches):
        begin = clock()
        for _ in range(_STEPS):
            engine.step()
        found.append((clock() - begin) / _STEPS)
    return Overhead(sequences, min(found), sorted(found)[len(found) // 2])
