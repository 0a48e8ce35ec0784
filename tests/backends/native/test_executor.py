"""The native step: right against the reference, and equal to itself however it is cut up."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from octavo.backends.base import (
    MASK_NONE,
    MASK_PENDING,
    MASK_READY,
    REFERENCE_ONLY,
    WANT_HIDDEN,
    WANT_LOGITS,
    WANT_NORMED,
    WANT_NOTHING,
    WANT_TARGET,
    WANT_TOKEN,
    KvFormat,
    RuntimeConfig,
    StepBatch,
    StepCancelled,
)
from octavo.backends.native.backend import load
from octavo.backends.native.executor import NativeExecutor
from octavo.core.errors import InternalError, UnsupportedError
from octavo.formats.kivi import KIVI_BITS
from octavo.spec.decoder import DecoderSpec, Role
from support.native_models import (
    BlocksTensor,
    Chunk,
    RandomSource,
    gemma_like,
    lay_out,
    llama_like,
    load_native,
    new_batch,
    step_logits,
    text_logits,
)

SPECS = {"llama": llama_like(), "gemma": gemma_like()}
CONFIG = RuntimeConfig(max_tokens=64, max_seqs=8, context=320, kv_tokens=2560, threads=2)
KV_FORMATS = [name for name in get_args(KvFormat) if name not in ("auto", *REFERENCE_ONLY)]
# type of the file's matrices, format asked for, activations
FORMATS = (
    ("F32", "source", "auto"),
    ("BF16", "source", "auto"),
    ("F16", "source", "auto"),
    ("Q8_0", "source", "auto"),
    ("Q4_0", "source", "auto"),
    ("Q4_1", "source", "a32"),
    ("F32", "int4_g32", "auto"),
    ("F32", "int8_channel", "auto"),
    ("F32", "int4_g16_asym", "abf16"),
    ("F32", "int4_g32", "a16"),
    ("Q4_1", "source", "a16"),
    ("F32", "int8_channel", "a16"),
    ("F32", "int4_g32", "a8a16"),
    ("F32", "int4_g32_asym", "a8a16"),
    ("F32", "nf4_g32", "auto"),
    ("F32", "fp8_e4m3_channel", "auto"),
)


def isas() -> list[str]:
    from octavo._native import testing

    return list(testing.isas())


def wide_llama() -> DecoderSpec:
    """int4 keys and values need a head_dim that 32 divides."""
    spec = llama_like()
    attention = replace(spec.layers[0].attention, head_dim=32)
    return replace(spec, layers=tuple(replace(b, attention=attention) for b in spec.layers))


KV_SPECS = {"llama": wide_llama(), "gemma": gemma_like()}


class LoudSource(RandomSource):
    """Values that fp16 can't hold."""

    def tensor(self, role: Role) -> BlocksTensor:
        tensor = super().tensor(role)
        if role.part != "v":
            return tensor
        loud = tensor.data.view(np.float32) * np.float32(1e6)
        return BlocksTensor(tensor.type, loud.view(np.uint8), tensor.shape)


def tokens_of(spec: DecoderSpec, length: int, seed: int = 1) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, spec.vocab, length)]


def reference_logits(
    spec: DecoderSpec, tokens: list[int], dtype: str = "fp32", kv_format: KvFormat = "fp32"
) -> np.ndarray:
    pytest.importorskip("torch")
    from octavo.backends.reference.decoder import ReferenceDecoder
    from octavo.backends.reference.options import ReferenceOptions

    options = ReferenceOptions(dtype=dtype, context=CONFIG.context, kv_format=kv_format)  # type: ignore[arg-type]
    return ReferenceDecoder.load(RandomSource(spec), spec, options).logits(tokens)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize(
    "spec", [*SPECS.values(), gemma_like(intermediate=80)], ids=["llama", "gemma", "padded"]
)
def test_equals_the_reference_to_rounding(spec: DecoderSpec, isa: str) -> None:
    # Both compute in fp32 what fp64 gives; the reference's own distance from it is the yardstick.
    tokens = tokens_of(spec, 40)
    want = reference_logits(spec, tokens)
    tolerance = 4 * np.abs(want - reference_logits(spec, tokens, "fp64")).max()
    config = replace(CONFIG, kv_format="fp32", activations="a32", isa=isa)
    ours = text_logits(load_native(spec, config), tokens, 13)
    assert tolerance < 1e-3 * np.abs(want).max()  # else the comparison proves nothing
    np.testing.assert_allclose(ours, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize(("stored", "asked", "activations"), FORMATS)
@pytest.mark.parametrize("name", SPECS)
def test_batch_chunks_and_threads_leave_no_trace(
    name: str, stored: str, asked: str, activations: str, isa: str
) -> None:
    spec = SPECS[name]
    config = replace(CONFIG, format=asked, activations=activations, isa=isa, wide_ratio=3.0)  # type: ignore[arg-type]
    one = load_native(spec, replace(config, threads=1), stored)
    two = load_native(spec, config, stored)
    texts = [tokens_of(spec, n, seed=n) for n in (30, 21, 9)]
    alone = [text_logits(one, text, 64, block=20 * i) for i, text in enumerate(texts)]
    for chunk in (1, 7):
        np.testing.assert_array_equal(text_logits(two, texts[0], chunk), alone[0])
    together = step_logits(
        two, new_batch(two), [Chunk(text, 0, 20 * i) for i, text in enumerate(texts)]
    )
    np.testing.assert_array_equal(together, np.concatenate(alone))
    if activations == "a8a16":  # both kinds of rows were there
        assert 0.05 < two.receipt().wide_share < 0.95


@pytest.mark.parametrize("kv_format", KV_FORMATS)
@pytest.mark.parametrize("name", SPECS)
def test_long_contexts_merge_their_splits_alike(name: str, kv_format: KvFormat) -> None:
    # 300 keys make two splits of 256: decode shares them between threads, prefill does not.
    spec, tokens = KV_SPECS[name], tokens_of(KV_SPECS[name], 300)
    config = replace(CONFIG, kv_format=kv_format)
    whole = text_logits(load_native(spec, replace(config, threads=1)), tokens, 64)
    executor = load_native(spec, config)
    text_logits(executor, tokens[:290], 64)
    batch = new_batch(executor)
    for at in range(290, 300):
        single = step_logits(executor, batch, [Chunk(tokens[at : at + 1], at, 0)])
        np.testing.assert_array_equal(single[0], whole[at])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_step_of_any_few_rows_gives_the_bits_of_single_ones(threads: int) -> None:
    # 1 to 7 rows: prepared by each thread; then by turns; from 4 a thread on, split by rows.
    spec, config = SPECS["gemma"], replace(CONFIG, format="int4_g16", threads=threads)
    tokens = tokens_of(spec, 12)
    executor = load_native(spec, config)
    want = text_logits(executor, tokens, 1)
    for rows in range(2, len(tokens) + 1):
        np.testing.assert_array_equal(text_logits(executor, tokens, rows), want)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("asked", ["source", "int4_g16", "int8_channel"])
@pytest.mark.parametrize(
    "spec", [*SPECS.values(), gemma_like(intermediate=80)], ids=["llama", "gemma", "padded"]
)
def test_threads_that_take_rows_through_layers_leave_no_trace(
    spec: DecoderSpec, asked: str, threads: int
) -> None:
    # From 4 rows a thread on; blocks span sequences.
    config = replace(CONFIG, format=asked, max_tokens=160)
    texts = [tokens_of(spec, n, seed=n) for n in (75, 1, 46, 35)]
    few = load_native(spec, config)
    alone = [text_logits(few, text, 7, block=20 * i) for i, text in enumerate(texts)]
    many = load_native(spec, replace(config, threads=threads))
    chunks = [Chunk(text, 0, 20 * i) for i, text in enumerate(texts)]
    together = step_logits(many, new_batch(many), chunks)
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("wanted", [(), (0,), (74,), (3, 40, 74), (74, 75, 120), (121, 156)])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_rows_that_nobody_wants_leave_no_trace(spec: DecoderSpec, wanted: tuple[int, ...]) -> None:
    # Behind the last layer's keys and values only tiles with wanted rows are computed.
    config = replace(CONFIG, format="int4_g16", max_tokens=160)
    texts = [tokens_of(spec, n, seed=n) for n in (75, 1, 46, 35)]
    chunks = [Chunk(text, 0, 20 * i) for i, text in enumerate(texts)]
    after = [Chunk([7], len(text), 20 * i) for i, text in enumerate(texts)]
    executor = load_native(spec, config)
    batch = new_batch(executor)
    everything, then = step_logits(executor, batch, chunks), step_logits(executor, batch, after)
    executor = load_native(spec, config)
    batch = new_batch(executor)
    lay_out(batch, chunks, WANT_NOTHING)
    batch.want[list(wanted)] = WANT_LOGITS
    batch.logits = np.full((len(wanted), spec.vocab), np.nan, np.float32)
    executor.step(batch)
    np.testing.assert_array_equal(batch.logits, everything[list(wanted)])
    np.testing.assert_array_equal(step_logits(executor, batch, after), then)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("kv_format", KV_FORMATS)
@pytest.mark.parametrize("name", SPECS)
def test_no_kv_format_leaves_a_trace_of_chunks_or_company(
    name: str, kv_format: KvFormat, isa: str
) -> None:
    spec = KV_SPECS[name]
    config = replace(CONFIG, kv_format=kv_format, isa=isa)
    texts = [tokens_of(spec, n, seed=n) for n in (37, 18)]
    one, two = load_native(spec, replace(config, threads=1)), load_native(spec, config)
    alone = [text_logits(one, text, 64, block=20 * i) for i, text in enumerate(texts)]
    for chunk in (1, 5):
        np.testing.assert_array_equal(text_logits(two, texts[0], chunk), alone[0])
    together = step_logits(
        two, new_batch(two), [Chunk(text, 0, 20 * i) for i, text in enumerate(texts)]
    )
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize(
    "kv_format", ["fp16", "int8", "int4", "fp8_e4m3", "fp8_e5m2", "kivi2", "kivi4"]
)
@pytest.mark.parametrize("name", SPECS)
def test_a_kv_format_rounds_as_the_reference_does(name: str, kv_format: KvFormat) -> None:
    """Both run all else in fp32. What stays between them: a code on the edge of two, rounded apart,
    moves a key by a step; with few such the distance is far below that of the format from fp32."""
    kivi = kv_format in KIVI_BITS
    spec, tokens = KV_SPECS[name], tokens_of(KV_SPECS[name], 200 if kivi else 40)
    want = reference_logits(spec, tokens, kv_format=kv_format)
    plain = reference_logits(spec, tokens, kv_format="bf16" if kivi else "fp32")
    config = replace(CONFIG, kv_format=kv_format, activations="a32")
    ours = text_logits(load_native(spec, config), tokens, 13)
    cost = np.square(want - plain).mean()
    assert np.square(ours - want).mean() < cost / 10


def test_values_beyond_fp16_end_the_step_with_advice() -> None:
    spec, tokens = SPECS["llama"], tokens_of(SPECS["llama"], 20)
    executor = load(spec, LoudSource(spec), replace(CONFIG, kv_format="fp16"))
    with pytest.raises(UnsupportedError, match=r"exceed 65504.*use the KV format bf16"):
        text_logits(executor, tokens, 64)


def test_blocks_of_the_cache_may_lie_anywhere() -> None:
    spec, tokens = SPECS["gemma"], tokens_of(SPECS["gemma"], 50)
    executor = load_native(spec, CONFIG)
    want = text_logits(executor, tokens, 64)
    batch = new_batch(executor)
    lay_out(batch, [Chunk(tokens, 0, 0)])
    batch.block_table[:, 0, :4] = [[31, 7, 90, 2], [5, 66, 1, 12]]
    batch.logits = np.zeros((50, spec.vocab), np.float32)
    executor.step(batch)
    np.testing.assert_array_equal(batch.logits, want)


def test_a_window_layer_needs_only_its_window() -> None:
    spec, tokens = SPECS["gemma"], tokens_of(SPECS["gemma"], 60)
    executor = load_native(spec, CONFIG)
    want = text_logits(executor, tokens, 64)
    windowed = next(i for i, g in enumerate(executor.layout.groups) if g.window)
    text_logits(executor, tokens[:59], 64)
    batch = new_batch(executor)
    lay_out(batch, [Chunk(tokens[59:], 59, 0)])
    batch.block_table[windowed, 0, :3] = -1  # keys 0 to 47; the window of 9 begins at 51
    batch.logits = np.zeros((1, spec.vocab), np.float32)
    executor.step(batch)
    np.testing.assert_array_equal(batch.logits[0], want[59])


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_copied_blocks_serve_as_the_originals(kv_format: KvFormat) -> None:
    spec, tokens = KV_SPECS["llama"], tokens_of(KV_SPECS["llama"], 33)
    executor = load_native(spec, replace(CONFIG, kv_format=kv_format))
    want = text_logits(executor, tokens, 64)
    for group in range(len(executor.layout.groups)):  # KIVI has two
        executor.copy_blocks(group, [(0, 40), (1, 41), (2, 42)])
    got = step_logits(executor, new_batch(executor), [Chunk(tokens[32:], 32, 40)])
    np.testing.assert_array_equal(got[0], want[32])


def test_greedy_tokens_are_the_argmax_and_targets_the_log_softmax() -> None:
    spec = SPECS["gemma"]
    executor, tokens = load_native(spec, CONFIG), tokens_of(SPECS["gemma"], 20)
    logits = text_logits(executor, tokens, 64)
    batch = new_batch(executor)
    lay_out(batch, [Chunk(tokens, 0, 0)], WANT_TOKEN)
    np.testing.assert_array_equal(executor.step(batch).token, logits.argmax(axis=1))
    batch.want[:20] = WANT_TARGET
    batch.target[:20] = np.arange(20)
    scored = executor.step(batch).logprob
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    logs = wide - peak - np.log(np.exp(wide - peak).sum(axis=1, keepdims=True))
    # exp in fp32 kernels is good to 2 ulp, and the result is rounded to fp32
    np.testing.assert_allclose(scored, logs[np.arange(20), np.arange(20)], rtol=0, atol=4e-6)


def test_mixed_wants_come_back_in_row_order() -> None:
    executor, tokens = load_native(SPECS["llama"], CONFIG), tokens_of(SPECS["llama"], 9)
    logits = text_logits(executor, tokens, 64)
    batch = new_batch(executor)
    lay_out(batch, [Chunk(tokens, 0, 0)], 0)
    batch.want[[2, 5, 8]] = WANT_TOKEN, WANT_LOGITS | WANT_HIDDEN, WANT_TOKEN
    batch.logits = np.zeros((1, executor.spec.vocab), np.float32)
    batch.hidden = np.zeros((1, executor.spec.hidden), np.float32)
    result = executor.step(batch)
    assert result.row.tolist() == [2, 5, 8]
    assert result.token.tolist() == [logits[2].argmax(), -1, logits[8].argmax()]
    np.testing.assert_array_equal(batch.logits[0], logits[5])
    assert np.abs(batch.hidden).max() > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b.token.__setitem__(1, 10_000), "token of row 1 is 10000"),
        (lambda b: b.position.__setitem__(2, -1), "position of row 2 is -1"),
        (lambda b: b.position.__setitem__(2, 400), "position of row 2 is 400"),
        (lambda b: b.block_table.__setitem__((0, 0, 0), -1), "needs a block"),
        (lambda b: b.block_table.__setitem__((0, 0, 0), 9999), "a block of sequence 0 is 9999"),
        (lambda b: b.adapter.__setitem__(0, 3), "adapters are not supported"),
        (lambda b: b.state_slot.__setitem__(0, 8), "the state slot of sequence 0 is 8"),
        (lambda b: setattr(b, "n_seqs", 0), "n_seqs is 0"),
        (lambda b: b.row_start.__setitem__(1, 0), "the number of rows is 0"),
        (lambda b: setattr(b, "logits", None), "more than batch.logits has"),
        (lambda b: b.bias_start.__setitem__(1, -2), "the bias list of sequence 0"),
    ],
)
def test_an_invalid_batch_is_refused_before_it_runs(change, says: str) -> None:  # type: ignore[no-untyped-def]
    executor = load_native(SPECS["llama"], CONFIG)
    batch = new_batch(executor)
    n = lay_out(batch, [Chunk([1, 2, 3], 0, 0)])
    batch.logits = np.zeros((n, executor.spec.vocab), np.float32)
    change(batch)
    with pytest.raises(InternalError, match=says):
        executor.step(batch)


def test_several_tokens_in_one_call_are_those_of_single_steps() -> None:
    executor, found = load_native(SPECS["gemma"], CONFIG), []
    for calls in ((1, 1, 1, 1, 1, 1), (4, 2)):
        batch, said = new_batch(executor), []
        chunks = [Chunk([7 + s], 0, 4 * s) for s in range(3)]
        lay_out(batch, chunks, WANT_TOKEN)
        batch.block_table[0, :3, 1] = [1, 5, 9]
        batch.temperature[:3], batch.seed[:3] = 1.0, 11
        for times in calls:
            result = executor.step_times(batch, times)
            assert result.n == 3 * times
            said += result.token.reshape(-1, 3).tolist()
            batch.token[:3] = said[-1]
            batch.position[:3] += 1
        found.append(said)
    assert found[0] == found[1]
    assert len(found[0]) == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b.want.__setitem__(1, WANT_TOKEN | WANT_HIDDEN), "what is wanted of sequence 1"),
        (lambda b: b.want.__setitem__(0, WANT_NOTHING), "what is wanted of sequence 0"),
        (lambda b: b.state_slot.__setitem__(1, 0), "the state slot or mask of sequence 1"),
        (lambda b: b.mask_state.__setitem__(0, 2), "the state slot or mask of sequence 0"),
        (lambda b: b.row_start.__setitem__(2, 3), "one a sequence"),
        (lambda b: b.block_table.__setitem__((0, 0, 1), -1), "needs a block"),
    ],
)
def test_what_may_not_run_ahead_is_refused(change, says: str) -> None:  # type: ignore[no-untyped-def]
    executor = load_native(SPECS["llama"], CONFIG)
    batch = new_batch(executor)
    lay_out(batch, [Chunk([1], 14, 0), Chunk([2], 14, 4), Chunk([3], 14, 8)], WANT_TOKEN)
    batch.n_seqs = 2
    batch.block_table[0, :2, :2] = [[0, 1], [4, 5]]
    batch.hidden = np.zeros((4, executor.spec.hidden), np.float32)
    change(batch)
    with pytest.raises(InternalError, match=says):
        executor.step_times(batch, 4)


def test_results_of_all_tokens_need_room() -> None:
    executor = load_native(SPECS["llama"], CONFIG)
    batch = new_batch(executor)
    lay_out(batch, [Chunk([1], 0, 0)], WANT_TOKEN)
    with pytest.raises(InternalError, match=f"times is {CONFIG.max_tokens + 1}"):
        executor.step_times(batch, CONFIG.max_tokens + 1)


def test_a_cancelled_step_stops_and_the_next_one_runs() -> None:
    executor, tokens = load_native(SPECS["llama"], CONFIG), tokens_of(SPECS["llama"], 9)
    want = text_logits(executor, tokens, 64)
    executor.cancel()
    with pytest.raises(StepCancelled):
        text_logits(executor, tokens, 64)
    executor.clear_cancel()
    np.testing.assert_array_equal(text_logits(executor, tokens, 64), want)


def test_cancel_from_another_thread_ends_a_long_step() -> None:
    executor = load_native(llama_like(layers=64), replace(CONFIG, max_tokens=256))
    tokens, batch = tokens_of(executor.spec, 256), new_batch(executor)
    lay_out(batch, [Chunk(tokens, 0, 0)], WANT_TOKEN)
    timer = threading.Timer(0.0, executor.cancel)
    timer.start()
    with pytest.raises(StepCancelled):
        _step_often(executor, batch)
    timer.join()


def _step_often(executor: NativeExecutor, batch: StepBatch) -> None:
    for _ in range(10_000):
        executor.step(batch)


def _step_in_child(executor: NativeExecutor, answers) -> None:  # type: ignore[no-untyped-def]
    try:
        text_logits(executor, [1, 2], 2)
        answers.put("ran")
    except InternalError as error:
        answers.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_gets_one_clear_error() -> None:
    executor = load_native(SPECS["llama"], CONFIG)
    text_logits(executor, [1, 2], 2)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_step_in_child, args=(executor, answers))
    child.start()
    assert "forked" in answers.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0


def test_more_threads_than_processors_still_agree() -> None:
    spec, tokens = SPECS["gemma"], tokens_of(SPECS["gemma"], 20)
    want = text_logits(load_native(spec, replace(CONFIG, threads=1)), tokens, 64)
    crowd = load_native(spec, replace(CONFIG, threads=7))
    np.testing.assert_array_equal(text_logits(crowd, tokens, 3), want)


def test_a_closed_executor_says_so() -> None:
    executor = load_native(SPECS["llama"], CONFIG)
    executor.close()
    executor.close()
    with pytest.raises(InternalError, match="closed"):
        text_logits(executor, [1], 1)


def test_a8_refuses_floats() -> None:
    with pytest.raises(UnsupportedError, match="a8 multiplies integers"):
        load_native(SPECS["llama"], replace(CONFIG, activations="a8"), "BF16")


def test_stage_times_cover_a_step_and_no_more() -> None:
    executor = load_native(SPECS["llama"], config=CONFIG)
    batch = new_batch(executor)
    lay_out(batch, [Chunk(tuple(range(20)), 0, 0)], WANT_TOKEN)
    before = executor.stage_times()
    assert before.seconds == ((0.0,) * len(before.stages),) * 2
    begin = time.perf_counter()
    executor.step(batch)
    passed = time.perf_counter() - begin
    spent = executor.stage_times().since(before)
    # One thread may have found all the work taken.
    assert all(max(column) > 0 for column in zip(*spent.seconds, strict=True))
    for thread in spent.seconds:
        assert sum(thread) < 1.01 * passed  # the two clocks agree far better than that


def masked_step(executor: NativeExecutor, batch: StepBatch, ready_after: float) -> list[int]:
    """Sequences 1 and 3 may only sample some tokens; their masks come late."""
    rng = np.random.default_rng(4)
    vocab = executor.spec.vocab
    bits = np.zeros((8, batch.mask_words * 32), np.uint8)
    bits[1, rng.choice(vocab, 3, replace=False)] = 1
    bits[3, rng.choice(vocab, vocab // 2, replace=False)] = 1
    batch.mask_state[:5] = (MASK_NONE, MASK_PENDING, MASK_NONE, MASK_PENDING, MASK_NONE)

    def publish() -> None:
        batch.mask[:] = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
        batch.mask_state[[1, 3]] = MASK_READY

    timer = threading.Timer(ready_after, publish)
    timer.start()
    result = executor.step(batch)
    timer.join()
    batch.mask_state[:] = MASK_NONE
    tokens = result.token[: result.n].tolist()
    assert bits[1, tokens[1]]
    assert bits[3, tokens[3]]
    return [*tokens, *np.flatnonzero(bits[1, :vocab]), -1, *np.flatnonzero(bits[3, :vocab])]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_masked_rows_take_the_best_that_is_allowed(
    name: str, length: int, temperature: float
) -> None:
    """Rows without a mask stay what they are; masked ones are the argmax of masked logits."""
    spec = SPECS[name]
    executor = load_native(spec, CONFIG)
    batch = new_batch(executor)
    chunks = [Chunk(tokens_of(spec, length, s), 0, s * 4) for s in range(5)]
    raw = step_logits(executor, batch, chunks)[length - 1 :: length]
    lay_out(batch, chunks, 0)
    batch.want[length - 1 : 5 * length : length] = WANT_TOKEN
    batch.temperature[:5], batch.seed[:5] = temperature, 11
    free = executor.step(batch).token[:5].tolist()
    tokens = masked_step(executor, batch, 0.02)
    allowed1, allowed3 = tokens[5 : tokens.index(-1)], tokens[tokens.index(-1) + 1 :]
    assert [tokens[s] for s in (0, 2, 4)] == [free[s] for s in (0, 2, 4)]
    if temperature == 0:
        assert tokens[1] == allowed1[int(np.argmax(raw[1][allowed1]))]
        assert tokens[3] == allowed3[int(np.argmax(raw[3][allowed3]))]
    executor.close()


def test_a_mask_needs_room_in_the_batch() -> None:
    executor = load_native(SPECS["llama"], CONFIG)
    batch = StepBatch(executor.layout, 64, 8, 20)
    lay_out(batch, [Chunk([1, 2], 0, 0)], WANT_TOKEN)
    batch.mask_state[0] = MASK_PENDING
    with pytest.raises(InternalError, match="mask"):
        executor.step(batch)
    executor.close()


@pytest.mark.parametrize("spec", [llama_like(), gemma_like()], ids=["llama", "gemma"])
def test_blocks_that_were_read_and_written_elsewhere_give_the_same_logits(spec: DecoderSpec):
    executor = load_native(spec, CONFIG)
    tokens = list(range(3, 40))
    whole = text_logits(executor, tokens, 64)
    layout = executor.layout
    for group in range(len(layout.groups)):
        data = executor.read_blocks(group, [0, 1])
        assert len(data) == 2 * layout.block_bytes[group]
        executor.write_blocks(group, [4, 3], data)
        assert executor.read_blocks(group, [3]) == executor.read_blocks(group, [1])
    batch = new_batch(executor)
    lay_out(batch, [Chunk(tokens[32:], 32, 5)])
    batch.block_table[:, 0, :3] = 4, 3, 5
    batch.logits = np.zeros((5, spec.vocab), np.float32)
    executor.step(batch)
    np.testing.assert_array_equal(batch.logits, whole[32:])


def test_blocks_of_a_wrong_size_or_number_are_refused():
    executor = load_native(llama_like(), CONFIG)
    data = executor.read_blocks(0, [0])
    for group, blocks, given in ((0, [1], data[1:]), (0, [-1], data), (0, [10**6], data)):
        with pytest.raises(InternalError, match="blocks of group"):
            executor.write_blocks(group, blocks, given)
    with pytest.raises(InternalError, match="no block 1000000"):
        executor.read_blocks(0, [10**6])


def test_states_behind_the_final_norm_are_those_the_head_reads():
    spec = llama_like()
    executor = load_native(spec, CONFIG)
    tokens = list(range(3, 30))
    states = [np.zeros((len(tokens), spec.hidden), np.float32) for _ in range(2)]
    for want, out in zip((WANT_HIDDEN, WANT_NORMED), states, strict=True):
        batch = new_batch(executor)
        lay_out(batch, [Chunk(tokens, 0, 0)], want)
        batch.hidden = out
        executor.step(batch)
    norm = RandomSource(spec).tensor(Role("final_norm")).float32()
    hidden, normed = states
    scale = np.sqrt((hidden.astype(np.float64) ** 2).mean(-1, keepdims=True) + spec.norm_eps)
    # the sum of squares has one rounding a term, the product two more
    np.testing.assert_allclose(normed, hidden / scale * norm, rtol=(spec.hidden + 4) * 2**-24)
