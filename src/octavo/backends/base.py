"""What the engine asks of a backend: load a model, run steps, say what ran.

Contract of `Executor.step`: one call runs every row of the batch through the model (or a range of
layers), writes the keys and values of those rows into the paged cache, and fills the result. A
sequence's numbers do not depend on what else is in the batch, on how its rows were chunked over
steps, or on the number of threads, bit for bit (architecture.md, contract 1).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from octavo.core.errors import OctavoError
from octavo.formats.activations import WIDE_RATIO
from octavo.spec.decoder import DecoderSpec

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

# "auto": what the artifact was compressed for, else bf16; settled when a model is loaded.
# "int8_dot": int8, and both of attention's products are of integers.
KvFormat = Literal[
    "auto", "bf16", "fp32", "fp16", "int8", "int8_dot", "int4", "fp8_e4m3", "fp8_e5m2", "kivi2",
    "kivi4",
]  # fmt: skip
# a8_token, a8_tensor, a8_static: int8 with one scale per token, per step (what else is in the batch
# changes it), or fixed when the artifact was made; llm_int8: per token, outliers exact. See
# `octavo.formats.activations`.
ActivationFormat = Literal[
    "auto",
    "a8",
    "a16",
    "a8a16",
    "abf16",
    "a32",
    "a8_token",
    "a8_tensor",
    "a8_static",
    "llm_int8",
]
REFERENCE_ONLY = ("int8_dot",)  # what no native kernel has

# What StepBatch.mask_state says of a sequence's row of `mask`.
MASK_NONE = 0  # any token may be sampled
MASK_PENDING = 1  # to be awaited: another thread is filling it
MASK_READY = 2

# What a row wants from the step (bit flags of StepBatch.want).
WANT_NOTHING = 0
WANT_TOKEN = 1  # sample a token
WANT_LOGPROBS = 2  # log-probability of the sampled (or target) token and of the top k
WANT_LOGITS = 4  # all logits, raw (before bias, penalties, temperature), into StepBatch.logits
WANT_TARGET = 8  # log-probability of `target` under the raw distribution (scoring)
WANT_HIDDEN = 16  # the hidden state after the last layer that ran, into StepBatch.hidden
WANT_NORMED = 32  # the same behind the final norm, what the head reads; instead of WANT_HIDDEN


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that share a block table: equal window, head shape and format. Where a layer's recent
    tokens are kept in another format too (KIVI's, natively), it is in a second group."""

    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    window: int | None
    format: KvFormat = "auto"  # "auto": the layout's; another: of recent tokens


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Shape of the paged cache. KV bytes are opaque to Python; `layout_id` names their order.

    block_bytes is per group: bytes of one block over all layers of the group, K and V.
    """

    groups: tuple[KvGroup, ...]
    block_size: int  # tokens
    format: KvFormat
    layout_id: str
    block_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What a load is asked for. `kv_blocks` is a tuple, one count per KV group, fixed by
    the caller after `plan_kv`."""

    max_tokens: int = 512  # rows of a step at most
    max_seqs: int = 8  # sequences of a step at most
    context: int = 0  # longest sequence; 0: the model's own maximum, capped to what memory allows
    kv_tokens: int = 0  # capacity of the cache in tokens; 0: one context, or by `kv_share`
    kv_share: float = 0.0  # room for max_seqs contexts, within this share of the memory left over
    kv_format: KvFormat = "auto"
    block_size: int = 16
    threads: int = 0  # 0: the machine's choice
    activations: ActivationFormat = "auto"
    keep_activations: tuple[tuple[str, ActivationFormat], ...] = ()  # (part, activations)
    wide_ratio: float = WIDE_RATIO  # a8a16: rows of a larger maximum over RMS take 16 bits
    format: str = "source"  # a NumberFormat to requantize to, or "source"
    keep: tuple[tuple[str, str], ...] = ()  # (part, format) exceptions: ("head", "int8_g32")
    strict: bool = False  # refuse generic fallbacks
    memory: int = 0  # bytes that weights, cache and buffers may take; 0: what is available
    isa: str = ""  # "" = OCTAVO_ISA or the best
    allow_collapsed: bool = False  # `LLM` runs an artifact that lost its source (io.collapse)


@dataclass(frozen=True, slots=True)
class Support:
    """The answer of `Backend.supports`: ok, or the reasons why not."""

    ok: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelUse:
    """One line of the receipt: what runs a linear layer's part, and what it reads per token."""

    role: str  # "layers 0-29 q,k,v", "head"
    kernel: str  # "linear_a8_w4g32_avx512vnni"
    format: str  # the stored NumberFormat
    activations: str  # "a8_g32"
    bytes_per_token: int
    fallback: str = ""  # why not a faster kernel; "" when none is missing
    products: int = 0  # multiplications per token and pass


@dataclass(frozen=True, slots=True)
class Receipt:
    """What really runs: never a silent fallback."""

    backend: str
    isa: str
    threads: int
    kv_format: str
    bytes_per_token: int  # weight bytes read per decoded token (norms and the embedding row too)
    packed_bytes: int  # memory held by packed weights
    kernels: tuple[KernelUse, ...]
    requantized: bool  # a lossy format was asked for
    notes: tuple[str, ...] = ()
    wide_share: float = 0.0  # a8a16: share of the rows of activations that took 16 bits so far
    kv_bytes_per_token: int = 0  # what a token adds to the cache, in all layers


class StepBatch:
    """Preallocated arrays of one step; one shape for prefill, decode, verification and scoring.

    Rows are tokens, laid sequence after sequence: rows of sequence s are
    row_start[s] .. row_start[s + 1]. Only the first `n_seqs` sequences and
    `row_start[n_seqs]` rows are read.
    """

    def __init__(
        self, layout: KvLayout, max_tokens: int, max_seqs: int, max_blocks: int, vocab: int = 0
    ) -> None:
        self.layout = layout
        self.max_tokens, self.max_seqs, self.max_blocks = max_tokens, max_seqs, max_blocks
        self.n_seqs = 0
        # per row
        self.token = np.zeros(max_tokens, np.int32)
        self.position = np.zeros(max_tokens, np.int32)
        self.want = np.zeros(max_tokens, np.uint8)
        self.target = np.full(max_tokens, -1, np.int32)
        # per sequence
        self.row_start = np.zeros(max_seqs + 1, np.int32)
        # [group, seq, block index in the sequence] -> block id of that group's pool; -1 = absent
        # (a window layer's block that has slid out)
        self.block_table = np.full((len(layout.groups), max_seqs, max_blocks), -1, np.int32)
        self.adapter = np.full(max_seqs, -1, np.int32)  # -1: none; others refused until multi-LoRA
        self.state_slot = np.full(max_seqs, -1, np.int32)  # token counts for penalties; -1: none
        self.seed = np.zeros(max_seqs, np.uint64)
        self.choice = np.zeros(max_seqs, np.int32)
        self.temperature = np.zeros(max_seqs, np.float32)  # 0: greedy
        self.top_k = np.zeros(max_seqs, np.int32)  # 0: off
        self.top_p = np.ones(max_seqs, np.float32)
        self.min_p = np.zeros(max_seqs, np.float32)
        self.repetition_penalty = np.ones(max_seqs, np.float32)
        self.presence_penalty = np.zeros(max_seqs, np.float32)
        self.frequency_penalty = np.zeros(max_seqs, np.float32)
        self.n_logprobs = np.zeros(max_seqs, np.int32)  # top k to report, at most MAX_LOGPROBS
        # bias list of sequence s: bias_token/bias_value[bias_start[s] : bias_start[s + 1]]
        self.bias_start = np.zeros(max_seqs + 1, np.int32)
        self.bias_token = np.zeros(max_seqs * MAX_BIAS, np.int32)
        self.bias_value = np.zeros(max_seqs * MAX_BIAS, np.float32)
        # Tokens that sequence s may sample: bit i % 32 of word i // 32 is token i. What may not is
        # out of the draw before bias and penalties; log-probabilities don't see it. A row that is
        # pending is made ready from another thread while the step runs, whatever happens. Batches
        # made for no vocabulary have no room for masks.
        self.mask_words = -(-vocab // 32)
        self.mask = np.zeros((max_seqs, self.mask_words), np.uint32)
        self.mask_state = np.zeros(max_seqs, np.int32)
        # where WANT_LOGITS / WANT_HIDDEN rows go, in row order: float32 [n, vocab] / [n, hidden]
        self.logits: F32 | None = None
        self.hidden: F32 | None = None


def allowed_tokens(batch: StepBatch, seq: int, vocab: int) -> npt.NDArray[np.bool_] | None:
    """What a sequence may sample, [vocab]; None: anything. Waits until the mask is ready."""
    if batch.mask_state[seq] == MASK_NONE:
        return None
    while batch.mask_state[seq] != MASK_READY:
        time.sleep(1e-5)
    bits = np.unpackbits(batch.mask[seq].view(np.uint8), count=vocab, bitorder="little")
    return bits.astype(np.bool_)


MAX_LOGPROBS = 20
MAX_BIAS = 1024


@dataclass(slots=True)
class StepResult:
    """Filled by `step`; arrays are the executor's own and valid until the next step.

    Entries are per *wanting* row, in row order (rows with WANT_NOTHING have none).
    """

    n: int = 0
    row: I32 = field(default_factory=lambda: np.zeros(0, np.int32))  # row of entry i
    token: I32 = field(default_factory=lambda: np.zeros(0, np.int32))  # sampled token, or -1
    logprob: F32 = field(default_factory=lambda: np.zeros(0, np.float32))  # of token or target
    top_token: I32 = field(default_factory=lambda: np.zeros((0, 0), np.int32))  # [n, MAX_LOGPROBS]
    top_logprob: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds that every thread has spent in every stage of all steps since the load. "prepare":
    residual, norm and activation formats; "wait": barriers; the others by their matrices."""

    stages: tuple[str, ...]
    seconds: tuple[tuple[float, ...], ...]  # [thread][stage]

    def since(self, before: StageTimes) -> StageTimes:
        pairs = zip(self.seconds, before.seconds, strict=True)
        rows = (tuple(a - b for a, b in zip(new, old, strict=True)) for new, old in pairs)
        return StageTimes(self.stages, tuple(rows))


class StepCancelled(OctavoError):
    """A step ended early because `cancel` was called. It gave nothing; the keys and values of its
    own rows are incomplete, and right once these rows have run again."""


class Executor(Protocol):
    """Runs steps. Holds the KV storage; knows blocks and slots, never requests."""

    spec: DecoderSpec
    layout: KvLayout
    config: RuntimeConfig  # resolved: no zeros or "auto" left
    kv_blocks: tuple[int, ...]  # blocks of each group's pool

    def step(self, batch: StepBatch) -> StepResult:
        """Raises StepCancelled after `cancel`, UnsupportedError when keys or values exceed what
        the cache's format holds."""

    def cancel(self) -> None:
        """End the running step soon, and every later one until `clear_cancel`. From any thread;
        nothing happens when closed."""

    def clear_cancel(self) -> None:
        """Let steps run again. From the thread that steps."""

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination) of one group, before the next step."""

    def read_blocks(self, group: int, blocks: Sequence[int]) -> bytes:
        """What whole blocks of a group hold, block_bytes[group] each: as opaque as `layout_id`
        says, and right for `write_blocks` of any executor with the same model, formats and kernels.
        Between steps."""

    def write_blocks(self, group: int, blocks: Sequence[int], data: bytes) -> None:
        """Put back what `read_blocks` gave for as many blocks. Raises InternalError, and writes
        nothing, when the size or a block is wrong."""

    def reset_state(self, slot: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Set a state slot's token counts, prompt and output apart. Slots: config.max_seqs.
        During `step`, a sampled token is added to its slot's output counts by the executor."""

    def receipt(self) -> Receipt: ...

    def close(self) -> None: ...


@runtime_checkable
class RunsAhead(Protocol):
    """An executor that can go on by itself for some tokens."""

    def step_times(self, batch: StepBatch, times: int) -> StepResult:
        """`times` steps in one call: behind each, every sequence's token becomes its row, one
        position on (in `batch.token` and `batch.position`). The same bits as `times` calls.

        Every sequence has one row, which wants a token and at most its log-probabilities, blocks
        for `times` tokens, no state slot and no mask; times * n_seqs is at most max_tokens. Entries
        of the result stand one time after the other. Raises what `step` raises; after a
        StepCancelled none of the tokens counts.
        """


@runtime_checkable
class StageTimed(Protocol):
    """An executor that keeps its own stage times."""

    def stage_times(self) -> StageTimes: ...


class Backend(Protocol):
    """A way to run a model."""

    name: str

    def supports(self, spec: DecoderSpec, config: RuntimeConfig) -> Support: ...
