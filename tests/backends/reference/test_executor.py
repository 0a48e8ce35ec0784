"""The paged executor against the plain decoder: blocks, windows, batches, wants, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from octavo.backends.base import (
    MASK_READY,
    MAX_LOGPROBS,
    WANT_HIDDEN,
    WANT_LOGITS,
    WANT_LOGPROBS,
    WANT_NOTHING,
    WANT_TARGET,
    WANT_TOKEN,
    RuntimeConfig,
    StepBatch,
)
from octavo.core.errors import InternalError, UnsupportedError
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec
from octavo.spec.table import family_for_hf
from support.memory_source import MemorySource, checkpoint_tensors
from support.tiny_models import VOCAB, WINDOW, tiny_model, tiny_values

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
decoders = pytest.importorskip("octavo.backends.reference.decoder")
executors = pytest.importorskip("octavo.backends.reference.executor")
options = pytest.importorskip("octavo.backends.reference.options")

F32 = npt.NDArray[np.float32]
LENGTH = 40
BLOCK = 4
FAMILIES = ("gemma3", "llama", "mixtral", "phi3")
CONFIG = RuntimeConfig(
    max_tokens=64,
    max_seqs=3,
    context=LENGTH,
    kv_tokens=3 * LENGTH,
    kv_format="fp32",
    block_size=BLOCK,
    activations="a32",
)


def text(seed: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(3, VOCAB, LENGTH).tolist()
    return tokens


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[DecoderSpec, MemorySource]]:
    root = tmp_path_factory.mktemp("executor")
    return {family: load(family, root / family) for family in FAMILIES}


def load(family: str, directory: Path) -> tuple[DecoderSpec, MemorySource]:
    values = tiny_values(family)
    kind = family_for_hf(values["architectures"][0])
    spec = kind.from_hf(ConfigReader(values, "config.json"))
    tensors = checkpoint_tensors(tiny_model(family), directory)
    return spec, MemorySource(spec, tensors, kind.hf_tensor)


def plain(model: tuple[DecoderSpec, MemorySource], tokens: list[int], **changes: Any) -> F32:
    chosen = options.ReferenceOptions(**{"context": LENGTH, **changes})
    logits: F32 = decoders.ReferenceDecoder.load(model[1], model[0], chosen).logits(tokens)
    return logits


def tolerance(model: tuple[DecoderSpec, MemorySource], tokens: list[int]) -> float:
    """4 times fp32's distance from fp64: chunked sums differ in order only."""
    return 4 * float(np.abs(plain(model, tokens) - plain(model, tokens, dtype="fp64")).max())


class Runner:
    """Feeds chunks of several texts; sequence s owns every n-th block, in a shuffled order."""

    def __init__(self, executor: Any, sequences: int) -> None:
        self.executor = executor
        self.batch = StepBatch(executor.layout, 64, 3, LENGTH // BLOCK, VOCAB)
        self.batch.logits = np.zeros((64, VOCAB), np.float32)
        self.batch.hidden = np.zeros((64, executor.spec.hidden), np.float32)
        self.batch.n_seqs = sequences
        order = np.random.default_rng(1).permutation(executor.kv_blocks[0])
        for group in range(len(executor.layout.groups)):
            for s in range(sequences):
                count = LENGTH // BLOCK
                self.batch.block_table[group, s] = order[s * count : (s + 1) * count]

    def feed(self, chunks: list[tuple[int, list[int]]], want: int = WANT_LOGITS) -> Any:
        """Runs (start, tokens) of each sequence."""
        row = 0
        for s, (start, tokens) in enumerate(chunks):
            self.batch.row_start[s] = row
            for offset, token in enumerate(tokens):
                self.batch.token[row] = token
                self.batch.position[row] = start + offset
                self.batch.want[row] = want
                row += 1
        self.batch.row_start[len(chunks)] = row
        return self.executor.step(self.batch)

    def forget_before(self, position: int) -> None:
        """Frees what has slid out of the window groups' view, as an engine does."""
        for group, shape in enumerate(self.executor.layout.groups):
            if shape.window is not None:
                gone = max(0, position - shape.window + 1) // BLOCK
                self.batch.block_table[group, :, :gone] = -1


@pytest.mark.parametrize("chunks", [(31, *[1] * 9), (7, 7, 7, 7, 7, 5), (LENGTH,)], ids=len)
@pytest.mark.parametrize("family", FAMILIES)
def test_paged_chunks_of_two_texts_equal_the_plain_decoder(
    family: str, chunks: tuple[int, ...], models: dict[str, tuple[DecoderSpec, MemorySource]]
) -> None:
    spec, source = models[family]
    texts = [text(1), text(2)[: LENGTH // 2]]
    runner = Runner(executors.load_reference(source, spec, CONFIG), 2)
    found: list[list[F32]] = [[], []]
    for start, size in zip(np.cumsum((0, *chunks)), chunks, strict=False):
        runner.forget_before(start)
        pieces = [(start, tokens[start : start + size]) for tokens in texts]
        runner.feed(pieces)
        assert runner.batch.logits is not None
        rows = np.split(runner.batch.logits, np.cumsum([len(p[1]) for p in pieces]))
        for s in range(2):
            found[s].append(rows[s].copy())
    for tokens, parts in zip(texts, found, strict=True):
        np.testing.assert_allclose(
            np.concatenate(parts),
            plain(models[family], tokens),
            rtol=0,
            atol=tolerance(models[family], tokens),
        )


def test_windows_have_groups_of_their_own(
    models: dict[str, tuple[DecoderSpec, MemorySource]],
) -> None:
    spec, source = models["gemma3"]
    executor = executors.load_reference(source, spec, CONFIG)
    assert [(g.layers, g.window) for g in executor.layout.groups] == [
        ((0, 2), WINDOW),
        ((1,), None),
    ]
    # 2 layers, K and V, 4 tokens, 2 heads of 32, 4 bytes
    assert executor.layout.block_bytes == (2 * 2 * 4 * 2 * 32 * 4, 2 * 4 * 2 * 32 * 4)


def test_bf16_keys_and_values_are_rounded_alike_in_both_paths(
    models: dict[str, tuple[DecoderSpec, MemorySource]],
) -> None:
    spec, source = models["llama"]
    config = RuntimeConfig(
        max_tokens=64, max_seqs=3, context=LENGTH, block_size=BLOCK, activations="a32"
    )
    runner = Runner(executors.load_reference(source, spec, config), 1)
    runner.feed([(0, text(1))])
    assert runner.batch.logits is not None
    expected = plain(models["llama"], text(1), kv_format="bf16")
    assert np.abs(expected - plain(models["llama"], text(1))).max() > 1e-3  # it does round
    np.testing.assert_allclose(
        runner.batch.logits[:LENGTH],
        expected,
        rtol=0,
        atol=tolerance(models["llama"], text(1)),
    )


def test_each_row_gets_what_it_wants(
    models: dict[str, tuple[DecoderSpec, MemorySource]],
) -> None:
    spec, source = models["llama"]
    runner = Runner(executors.load_reference(source, spec, CONFIG), 2)
    batch, logits = runner.batch, plain(models["llama"], text(1))
    batch.n_logprobs[0] = 3
    wants = (WANT_NOTHING, WANT_TOKEN, WANT_TARGET, WANT_TOKEN | WANT_LOGPROBS, WANT_HIDDEN)
    tokens = text(1)[: len(wants)]
    batch.target[2] = 77
    runner.feed([(0, tokens), (0, text(2)[:1])], WANT_NOTHING)
    batch.want[: len(wants)] = wants
    batch.want[len(wants)] = WANT_LOGITS
    result = runner.executor.step(batch)
    log_softmax = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    assert result.n == 5
    assert result.row.tolist() == [1, 2, 3, 4, 5]
    assert result.token.tolist() == [logits[1].argmax(), -1, logits[3].argmax(), -1, -1]
    # log-softmax is as far off as the logits, plus its own last rounding
    near = pytest.approx
    assert result.logprob[1] == near(log_softmax[2, 77], abs=1e-4)
    assert result.logprob[2] == near(log_softmax[3].max(), abs=1e-4)
    assert np.isnan(result.logprob[[0, 3, 4]]).all()
    best = np.argsort(-logits[3], kind="stable")[:3]
    assert result.top_token[2, :4].tolist() == [*best, -1]
    assert result.top_token.shape == (5, MAX_LOGPROBS)
    assert result.top_logprob[2, :3] == near(log_softmax[3, best], abs=1e-4)
    assert batch.logits is not None
    assert batch.hidden is not None
    own = tolerance(models["llama"], text(2)[:1])
    np.testing.assert_allclose(
        batch.logits[0], plain(models["llama"], text(2)[:1])[0], rtol=0, atol=own
    )
    decoder = runner.executor.decoder
    with torch.no_grad():
        hidden = decoder.hidden(np.array(tokens), np.arange(len(tokens)), decoder.new_kv())
    np.testing.assert_allclose(batch.hidden[0], hidden[4].numpy(), rtol=0, atol=own * 10)


def test_a_copied_block_reads_as_the_original(
    models: dict[str, tuple[DecoderSpec, MemorySource]],
) -> None:
    spec, source = models["gemma3"]
    runner = Runner(executors.load_reference(source, spec, CONFIG), 1)
    tokens = text(1)[:10]
    runner.feed([(0, tokens[:9])])
    for group in range(2):
        old = int(runner.batch.block_table[group, 0, 1])
        free = next(b for b in range(30) if b not in runner.batch.block_table[group, 0])
        runner.executor.copy_blocks(group, [(old, free)])
        runner.batch.block_table[group, 0, 1] = free
    runner.feed([(9, tokens[9:])])
    assert runner.batch.logits is not None
    np.testing.assert_allclose(
        runner.batch.logits[0],
        plain(models["gemma3"], tokens)[9],
        rtol=0,
        atol=tolerance(models["gemma3"], tokens),
    )


REFUSALS = (
    ("temperature", 0.5),
    ("repetition_penalty", 1.1),
    ("presence_penalty", 0.1),
    ("frequency_penalty", 0.1),
    ("adapter", 0),
)


@pytest.mark.parametrize(("field", "value"), REFUSALS)
def test_more_than_greedy_is_refused_by_name(
    field: str, value: float, models: dict[str, tuple[DecoderSpec, MemorySource]]
) -> None:
    spec, source = models["llama"]
    runner = Runner(executors.load_reference(source, spec, CONFIG), 1)
    getattr(runner.batch, field)[0] = value
    with pytest.raises(UnsupportedError, match=field):
        runner.feed([(0, [5])], WANT_TOKEN)


def test_an_empty_batch_has_no_results(
    models: dict[str, tuple[DecoderSpec, MemorySource]],
) -> None:
    spec, source = models["llama"]
    runner = Runner(executors.load_reference(source, spec, CONFIG), 0)
    assert runner.feed([]).n == 0


def test_the_receipt_counts_bytes_and_names_formats(
    models: dict[str, tuple[DecoderSpec, MemorySource]],
) -> None:
    spec, source = models["mixtral"]
    config = RuntimeConfig(context=LENGTH, format="int4_g32", activations="auto")
    executor = executors.load_reference(source, spec, config)
    receipt = executor.receipt()
    assert receipt.requantized
    assert {use.format for use in receipt.kernels} == {"int4_g32"}
    assert {use.activations for use in receipt.kernels} == {"a8_g32"}
    assert executor.config.activations == "a8"
    assert receipt.packed_bytes >= receipt.bytes_per_token
    executor.close()


def test_configs_are_resolved_or_refused(
    models: dict[str, tuple[DecoderSpec, MemorySource]],
) -> None:
    spec, _ = models["llama"]
    resolved = executors.resolve(spec, RuntimeConfig())
    assert resolved.context == resolved.kv_tokens == spec.max_positions
    assert resolved.threads >= 1
    assert resolved.isa
    with pytest.raises(UnsupportedError, match="exceeds the model's 128 positions"):
        executors.resolve(spec, RuntimeConfig(context=129))
    with pytest.raises(UnsupportedError, match="avx2"):
        executors.resolve(spec, RuntimeConfig(isa="avx2"))


def test_masked_rows_take_the_best_that_is_allowed(
    models: dict[str, tuple[DecoderSpec, MemorySource]],
) -> None:
    spec, source = models["llama"]
    runner = Runner(executors.load_reference(source, spec, CONFIG), 2)
    texts = [text(1)[:5], text(2)[:5]]
    runner.batch.mask[1, 1] = 0b1010 << 8
    runner.batch.mask_state[1] = MASK_READY
    runner.feed([(0, tokens) for tokens in texts])
    logits = np.array(runner.batch.logits)
    result = runner.feed([(0, tokens) for tokens in texts], WANT_TOKEN)
    tokens = result.token.reshape(2, 5)
    assert tokens[0].tolist() == logits[:5].argmax(axis=1).tolist()
    assert tokens[1].tolist() == [41 + 2 * int(row[43] > row[41]) for row in logits[5:10]]


def test_blocks_go_out_and_come_back(models: dict[str, tuple[DecoderSpec, MemorySource]]) -> None:
    runner = Runner(executors.load_reference(models["gemma3"][1], models["gemma3"][0], CONFIG), 2)
    runner.feed([(0, text(1)[:12]), (0, text(2)[:12])])
    executor = runner.executor
    for group, size in enumerate(executor.layout.block_bytes):
        first = [int(b) for b in runner.batch.block_table[group, :2, 0]]
        data = executor.read_blocks(group, first)
        assert len(data) == 2 * size
        assert any(data)
        executor.write_blocks(group, first[::-1], data)
        assert executor.read_blocks(group, first[::-1]) == data
        with pytest.raises(InternalError, match="not those of 2 blocks"):
            executor.write_blocks(group, first, data[1:])
