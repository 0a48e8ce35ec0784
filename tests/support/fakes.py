"""Stand-ins that catch mistakes: an executor that sees the past only through its block tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from octavo.backends.base import (
    F32,
    MASK_NONE,
    MAX_LOGPROBS,
    WANT_LOGPROBS,
    WANT_NORMED,
    WANT_NOTHING,
    WANT_TARGET,
    WANT_TOKEN,
    KvGroup,
    KvLayout,
    Receipt,
    RuntimeConfig,
    StepBatch,
    StepCancelled,
    StepResult,
    allowed_tokens,
)
from octavo.core.errors import ModelFileError
from octavo.engine.engine import Engine
from octavo.engine.request import Request, SamplingParams, TokenLogprobs
from octavo.engine.sampling import Counts, Draw, Sampled, raw_logprobs, sample_reference
from octavo.engine.store import PrefixStore
from octavo.spec.decoder import AttentionSpec, DecoderSpec, DenseMlp, LayerSpec, RopeSpec


def tiny_spec(vocab: int, max_positions: int = 64) -> DecoderSpec:
    attention = AttentionSpec(1, 1, 2, 1.0, RopeSpec(1e4, 2))
    layer = LayerSpec(attention, DenseMlp(2))
    return DecoderSpec("fake", vocab, 2, (layer,), 1e-5, max_positions, True)


def layout_of(windows: Sequence[int | None], block_size: int) -> KvLayout:
    groups = tuple(KvGroup((i,), 1, 2, window) for i, window in enumerate(windows))
    return KvLayout(groups, block_size, "fp32", "fake", (8 * block_size,) * len(groups))


@dataclass(frozen=True)
class FakeModel:
    """Logits as a hash of what each KV group can see. No cache: the oracle of the executor."""

    vocab: int
    windows: tuple[int | None, ...] = (None,)

    def logits(self, histories: Sequence[Sequence[int]]) -> F32:
        """histories[group] are the tokens that the group's layers see, the newest last."""
        code = crc32(repr([list(history) for history in histories]).encode())
        values = [crc32(b"%d:%d" % (code, token)) % 4096 for token in range(self.vocab)]
        return np.array(values, np.float32) / np.float32(512)

    def views(self, tokens: Sequence[int]) -> list[Sequence[int]]:
        return [tokens if w is None else tokens[-w:] for w in self.windows]

    def next(self, request: Request, choice: int, tokens: Sequence[int]) -> Sampled:
        """What follows `tokens` (prompt and answer so far) of a request alone in the world."""
        params, n_prompt = request.params, len(request.prompt)
        logits = self.logits(self.views(tokens))
        held = request.stops if len(tokens) - n_prompt < params.min_tokens else ()
        counts = Counts(
            np.bincount(tokens[:n_prompt], minlength=self.vocab),
            np.bincount(tokens[n_prompt:], minlength=self.vocab).astype(np.int64),
        )
        draw = Draw(params.seed or 0, len(tokens), choice)
        masked = logits.copy()
        masked[list(held)] = -np.inf
        sampled = sample_reference(masked, params, counts, draw)
        raw = raw_logprobs(logits, sampled.token, params.logprobs or 0)
        return sampled._replace(logprobs=raw)

    def answer(self, request: Request, choice: int = 0, context: int = 64) -> list[int]:
        """The whole answer, its stop token included."""
        tokens = list(request.prompt)
        limit = min(len(tokens) + request.params.max_tokens, context)
        while len(tokens) < limit:
            tokens.append(self.next(request, choice, tokens).token)
            if tokens[-1] in request.stops:
                break
        return tokens[len(request.prompt) :]

    def prompt_logprobs(self, request: Request) -> list[TokenLogprobs]:
        prompt, count = request.prompt, request.params.logprobs or 0
        return [
            raw_logprobs(self.logits(self.views(prompt[:i])), prompt[i], count)
            for i in range(1, len(prompt))
        ]


@dataclass(frozen=True)
class CountingModel(FakeModel):
    """Each token is followed by the next number: "a" by "b", and 255 by 256."""

    def logits(self, histories: Sequence[Sequence[int]]) -> F32:
        scores = np.zeros(self.vocab, np.float32)
        scores[(histories[0][-1] + 1) % self.vocab] = 10
        return scores


@dataclass(frozen=True)
class ScriptedModel(FakeModel):
    """Wants to say `script`, and then `end`, whatever it is asked."""

    script: tuple[int, ...] = ()
    end: int = 0

    def logits(self, histories: Sequence[Sequence[int]]) -> F32:
        history, script = tuple(histories[0]), (*self.script, self.end)
        said = max(k for k in range(len(script)) if k == 0 or history[-k:] == script[:k])
        scores = np.zeros(self.vocab, np.float32)
        scores[script[said]] = 50
        return scores


class FakeExecutor:
    """Keeps tokens in a paged cache and reads them back through the block tables.

    A step that is cancelled leaves wrong tokens in all cells that it was to write.

    A wrong table, a missed copy, a position out of order or a block freed too early changes the
    next token. Blocks not written since `copy_blocks` or the start hold -1, which fails on reading.
    """

    def __init__(self, model: FakeModel, config: RuntimeConfig, kv_blocks: tuple[int, ...]) -> None:
        self.model, self.config, self.kv_blocks = model, config, kv_blocks
        self.spec = tiny_spec(model.vocab, config.context)
        self.layout = layout_of(model.windows, config.block_size)
        self.cache = [np.full((count, config.block_size), -1, np.int64) for count in kv_blocks]
        shape = (config.max_seqs, model.vocab)
        self.prompt_counts, self.output_counts = np.zeros(shape, int), np.zeros(shape, int)
        self.rows: list[int] = []  # rows of each step
        self.seqs: list[int] = []  # sequences of each step
        self.closed = False
        self.fail_with: Exception | None = None
        self.cancelled = threading.Event()
        self.cancel_after: int | None = None  # rows until the next step is cancelled, once

    def step(self, batch: StepBatch) -> StepResult:
        if self.fail_with is not None:
            raise self.fail_with
        counts = self.output_counts.copy()
        try:
            return self._step(batch)
        except StepCancelled:
            self.output_counts = counts
            self._spoil(batch)
            raise

    def _step(self, batch: StepBatch) -> StepResult:
        self.seqs.append(batch.n_seqs)
        self.rows.append(int(batch.row_start[batch.n_seqs]))
        assert self.rows[-1] <= self.config.max_tokens
        assert batch.n_seqs <= self.config.max_seqs
        self._states = 0  # rows of batch.hidden that have been written
        entries = [entry for seq in range(batch.n_seqs) for entry in self._run(batch, seq)]
        return _result(entries)

    def _spoil(self, batch: StepBatch) -> None:
        for seq in range(batch.n_seqs):
            for row in range(int(batch.row_start[seq]), int(batch.row_start[seq + 1])):
                for group, cache in enumerate(self.cache):
                    cache[self._cell(batch, seq, group, int(batch.position[row]))] = 10**6

    def _pass_barrier(self, row: int) -> None:
        if row == self.cancel_after:
            self.cancel_after = None
            self.cancel()
        if self.cancelled.is_set():
            raise StepCancelled("the step was cancelled before it finished")

    def _run(self, batch: StepBatch, seq: int) -> Iterator[tuple[int, int, TokenLogprobs]]:
        for row in range(int(batch.row_start[seq]), int(batch.row_start[seq + 1])):
            self._pass_barrier(row)
            position = int(batch.position[row])
            histories = []
            for group in range(len(self.cache)):
                self._write(batch, seq, group, row)
                histories.append(self._read(batch, seq, group, position))
            want = int(batch.want[row])
            if want & WANT_NORMED:
                assert batch.hidden is not None
                batch.hidden[self._states] = (
                    crc32(repr(histories).encode()) % 4096,
                    histories[0][-1] + 1,
                )
                self._states += 1
                yield row, -1, TokenLogprobs(-1, 0.0)
            elif want != WANT_NOTHING:
                yield (row, *self._choose(batch, seq, row, self.model.logits(histories)))

    def _cell(self, batch: StepBatch, seq: int, group: int, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.config.block_size)
        block = int(batch.block_table[group, seq, index])
        assert 0 <= block < self.kv_blocks[group], f"position {position} has block {block}"
        return block, offset

    def _write(self, batch: StepBatch, seq: int, group: int, row: int) -> None:
        cell = self._cell(batch, seq, group, int(batch.position[row]))
        self.cache[group][cell] = batch.token[row]

    def _read(self, batch: StepBatch, seq: int, group: int, position: int) -> list[int]:
        window = self.model.windows[group]
        first = 0 if window is None else max(0, position - window + 1)
        cells = [self._cell(batch, seq, group, p) for p in range(first, position + 1)]
        history = [int(self.cache[group][cell]) for cell in cells]
        assert min(history) >= 0, "a cell was read that was never written"
        return history

    def _choose(
        self, batch: StepBatch, seq: int, row: int, logits: F32
    ) -> tuple[int, TokenLogprobs]:
        want, top = int(batch.want[row]), int(batch.n_logprobs[seq])
        if want & WANT_TARGET:
            count = top if want & WANT_LOGPROBS else 0
            return -1, raw_logprobs(logits, int(batch.target[row]), count)
        assert want & WANT_TOKEN
        slot = int(batch.state_slot[seq])
        counts = None if slot < 0 else Counts(self.prompt_counts[slot], self.output_counts[slot])
        biased = logits.copy()
        start, stop = batch.bias_start[seq : seq + 2]
        np.add.at(biased, batch.bias_token[start:stop], batch.bias_value[start:stop])
        allowed = allowed_tokens(batch, seq, self.model.vocab)
        if allowed is not None:
            biased[~allowed] = -np.inf
        draw = Draw(int(batch.seed[seq]), int(batch.position[row]) + 1, int(batch.choice[seq]))
        token = sample_reference(biased, _params(batch, seq), counts, draw).token
        if slot >= 0:
            self.output_counts[slot, token] += 1
        return token, raw_logprobs(logits, token, top)

    def cancel(self) -> None:
        self.cancelled.set()

    def clear_cancel(self) -> None:
        self.cancelled.clear()

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.cache[group][target] = self.cache[group][source]

    def read_blocks(self, group: int, blocks: Sequence[int]) -> bytes:
        return self.cache[group][list(blocks)].tobytes()

    def write_blocks(self, group: int, blocks: Sequence[int], data: bytes) -> None:
        shape = (len(blocks), self.config.block_size)
        self.cache[group][list(blocks)] = np.frombuffer(data, np.int64).reshape(shape)

    def reset_state(self, slot: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        for counts, tokens in ((self.prompt_counts, prompt), (self.output_counts, output)):
            counts[slot] = np.bincount(np.array(tokens, int), minlength=self.model.vocab)

    def receipt(self) -> Receipt:
        return Receipt("fake", "python", 1, "fp32", 8, 8, (), requantized=False)

    def close(self) -> None:
        self.closed = True


class FakeAheadExecutor(FakeExecutor):
    """Runs several tokens a call, and refuses what may not run ahead."""

    def step_times(self, batch: StepBatch, times: int) -> StepResult:
        n = batch.n_seqs
        assert times * n <= self.config.max_tokens
        if times > 1:
            assert batch.row_start[n] == n
            assert set(batch.want[:n].tolist()) <= {WANT_TOKEN, WANT_TOKEN | WANT_LOGPROBS}
            assert (batch.state_slot[:n] < 0).all()
            assert (batch.mask_state[:n] == MASK_NONE).all()
        results = []
        for again in range(times):
            if again:
                batch.token[:n] = results[-1].token
                batch.position[:n] += 1
            results.append(self.step(batch))
        columns = (
            np.concatenate([getattr(result, name) for result in results])
            for name in ("row", "token", "logprob", "top_token", "top_logprob")
        )
        return StepResult(times * n, *columns)


def _params(batch: StepBatch, seq: int) -> SamplingParams:
    return SamplingParams(
        temperature=float(batch.temperature[seq]),
        top_k=int(batch.top_k[seq]),
        top_p=float(batch.top_p[seq]),
        min_p=float(batch.min_p[seq]),
        repetition_penalty=float(batch.repetition_penalty[seq]),
        presence_penalty=float(batch.presence_penalty[seq]),
        frequency_penalty=float(batch.frequency_penalty[seq]),
    )


def _result(entries: list[tuple[int, int, TokenLogprobs]]) -> StepResult:
    shape = (len(entries), MAX_LOGPROBS)
    result = StepResult(
        n=len(entries),
        row=np.array([row for row, _, _ in entries], np.int32),
        token=np.array([token for _, token, _ in entries], np.int32),
        logprob=np.array([logprobs.logprob for _, _, logprobs in entries], np.float32),
        top_token=np.full(shape, -1, np.int32),
        top_logprob=np.full(shape, -np.inf, np.float32),
    )
    for index, (_, _, logprobs) in enumerate(entries):
        for place, (token, value) in enumerate(logprobs.top):
            result.top_token[index, place] = token
            result.top_logprob[index, place] = value
    return result


def fake_executor(
    vocab: int = 7,
    windows: tuple[int | None, ...] = (None,),
    kv_blocks: int = 32,
    config: RuntimeConfig | None = None,
    ahead: bool = False,
) -> FakeExecutor:
    """Small enough that blocks, budget and slots all run short."""
    config = config or RuntimeConfig(max_tokens=6, max_seqs=3, context=24, block_size=4)
    kind = FakeAheadExecutor if ahead else FakeExecutor
    return kind(FakeModel(vocab, windows), config, (kv_blocks,) * len(windows))


def fake_engine(delay: float = 0.0, store: str = "", **config: object) -> Engine:
    """For a child process: an engine on a fake executor, each of whose steps takes `delay` s.
    `store` is the directory of its prefix store."""
    defaults = {"max_tokens": 6, "max_seqs": 3, "context": 24, "block_size": 4}
    executor = fake_executor(config=RuntimeConfig(**{**defaults, **config}))
    if delay:
        step = executor.step
        executor.step = lambda batch: (time.sleep(delay), step(batch))[1]
    return Engine(executor, store=PrefixStore(Path(store), "fake" * 8) if store else None)


def broken_engine() -> Engine:
    """For a child process: what can't be loaded."""
    raise ModelFileError("the file is damaged; fetch it again")


class ByteTokenizer:
    """One token a byte, 256 ends the answer, 257 begins a text. The io.tokenizer interface."""

    vocab_size = 258
    bos_id = 257
    eos_ids: tuple[int, ...] = (256,)
    special_ids = frozenset((256, 257))
    chat_template: str | None = None
    strips_space = False

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return ([self.bos_id] if add_special else []) + list(text.encode())

    def encode_literal(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")
