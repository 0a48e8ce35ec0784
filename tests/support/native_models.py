"""Small random models by role, without any file: for tests of the native backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from octavo.backends.base import WANT_LOGITS, Executor, RuntimeConfig, StepBatch
from octavo.backends.native.backend import load
from octavo.backends.native.executor import NativeExecutor
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.gguf_blocks import dequantize, encode, format_of, quantized
from octavo.io.weights import RawBlocks
from octavo.spec.decoder import AttentionSpec, DecoderSpec, DenseMlp, LayerSpec, Role, RopeSpec
from octavo.spec.graph import role_shape, roles

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BlocksTensor:
    """A TensorView over rows as stored."""

    type: str
    data: npt.NDArray[np.uint8]
    shape: tuple[int, ...]

    @property
    def format(self) -> NumberFormat:
        return format_of(self.type)

    def raw(self, start: int, stop: int) -> RawBlocks:
        return RawBlocks(self.type, self.data[start:stop])

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        return quantized(self.type, self.data[start:stop])

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        values = dequantize(self.type, self.data[start:stop])
        return values.reshape(-1) if len(self.shape) == 1 else values

    def drop(self) -> None:
        """Nothing is mapped."""


class RandomSource:
    """Seeded weights of any spec. Matrices are stored as `type`, vectors as F32."""

    def __init__(self, spec: DecoderSpec, type: str = "F32", seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._tensors = {role: _random(rng, spec, role, type) for role in roles(spec)}

    def tensor(self, role: Role) -> BlocksTensor:
        return self._tensors[role]

    def has(self, role: Role) -> bool:
        return role in self._tensors

    def describe(self) -> str:
        return "random weights"


def _random(rng: np.random.Generator, spec: DecoderSpec, role: Role, type: str) -> BlocksTensor:
    shape = role_shape(spec, role)
    values = rng.standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        values = values * np.float32(0.2) + np.float32(0.0 if "bias" in role.part else 1.0)
        return BlocksTensor("F32", values.reshape(-1, 1).view(np.uint8), shape)
    values *= np.float32(1.5 / np.sqrt(shape[1]))
    return BlocksTensor(type, encode(type, values), shape)


def llama_like(vocab: int = 96, layers: int = 2, tied: bool = True) -> DecoderSpec:
    """Grouped queries, no frills."""
    attention = AttentionSpec(4, 2, 16, 0.25, RopeSpec(1e4, 16))
    block = LayerSpec(attention, DenseMlp(96))
    return DecoderSpec("llama", vocab, 64, (block,) * layers, 1e-5, 1024, tied)


def gemma_like(vocab: int = 100, intermediate: int = 96) -> DecoderSpec:
    """Windows, softcaps, norms of q and k, sandwich norms, partial rope, an odd number of heads."""
    wide = AttentionSpec(
        3, 1, 32, 0.2, RopeSpec(1e6, 16), qk_norm=True, softcap=5.0, qkv_bias=True, out_bias=True
    )
    narrow = replace(wide, window=9, rope=RopeSpec(1e4, 32))
    blocks = tuple(
        LayerSpec(a, DenseMlp(intermediate, "gelu_tanh", bias=True), post_norms=True)
        for a in (narrow, wide, narrow)
    )
    return DecoderSpec("gemma", vocab, 64, blocks, 1e-6, 1024, False, 8.0, 3.0)


def load_native(
    spec: DecoderSpec, config: RuntimeConfig, type: str = "F32", seed: int = 0
) -> NativeExecutor:
    return load(spec, RandomSource(spec, type, seed), config)


@dataclass(frozen=True)
class Chunk:
    """Rows of one sequence in a step: tokens from `start` on, in blocks from `block` on."""

    tokens: Sequence[int]
    start: int
    block: int


def new_batch(executor: Executor) -> StepBatch:
    config, size = executor.config, executor.layout.block_size
    return StepBatch(
        executor.layout, config.max_tokens, config.max_seqs, -(-config.context // size),
        executor.spec.vocab,
    )  # fmt: skip


def lay_out(batch: StepBatch, chunks: Sequence[Chunk], want: int = WANT_LOGITS) -> int:
    """Fills the batch; every row wants `want`. Returns the number of rows."""
    row = 0
    batch.n_seqs = len(chunks)
    for s, chunk in enumerate(chunks):
        stop = row + len(chunk.tokens)
        batch.token[row:stop] = chunk.tokens
        batch.position[row:stop] = np.arange(chunk.start, chunk.start + len(chunk.tokens))
        batch.want[row:stop] = want
        batch.row_start[s], batch.row_start[s + 1] = row, stop
        count = -(-(chunk.start + len(chunk.tokens)) // batch.layout.block_size)
        batch.block_table[:, s] = -1
        batch.block_table[:, s, :count] = np.arange(chunk.block, chunk.block + count)
        row = stop
    return row


def step_logits(executor: Executor, batch: StepBatch, chunks: Sequence[Chunk]) -> F32:
    """One step; logits of every row, [rows, vocab]."""
    n = lay_out(batch, chunks)
    batch.logits = np.full((n, executor.spec.vocab), np.nan, np.float32)
    executor.step(batch)
    return batch.logits


def text_logits(executor: Executor, tokens: Sequence[int], chunk: int, block: int = 0) -> F32:
    """Logits of every position of a text, `chunk` rows a step."""
    batch = new_batch(executor)
    parts = [
        step_logits(executor, batch, [Chunk(tokens[i : i + chunk], i, block)])
        for i in range(0, len(tokens), chunk)
    ]
    return np.concatenate(parts)
