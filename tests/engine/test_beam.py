"""Beam search against a slow one that looks at the whole vocabulary, without cache or batch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octavo.api import LLM
from octavo.backends.base import RuntimeConfig
from octavo.core.errors import RequestError
from octavo.engine.beam import BeamParams
from octavo.engine.sampling import raw_logprobs
from support.fakes import ByteTokenizer, FakeExecutor, FakeModel
from support.native_models import llama_like, load_native, text_logits

CONFIG = RuntimeConfig(max_tokens=32, max_seqs=4, context=64, block_size=4)


def slow_search(logprobs_of, width, max_tokens, eos, penalty):
    """All continuations of all live answers, every step, to the end."""
    live, done = [((), 0.0)], []
    for _ in range(max_tokens):
        found = [
            ((*tokens, token), total + value)
            for tokens, total in live
            for token, value in enumerate(logprobs_of(tokens))
        ]
        found.sort(key=lambda item: (-item[1], item[0]))
        live, rest = [], iter(found)
        while len(live) < width and (item := next(rest, None)) is not None:
            (done if item[0][-1] in eos else live).append(item)
    scored = [(total / len(tokens) ** penalty, tokens) for tokens, total in done + live]
    return sorted(scored, key=lambda item: (-item[0], item[1]))[:width]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("prompt", [(1, 2, 3), (4, 4, 4, 4, 4, 4, 4, 4, 4)], ids=len)
def test_it_finds_what_the_slow_search_finds(width, penalty, prompt):
    model, eos = FakeModel(9, (None, 5)), (0, 7)
    executor = FakeExecutor(model, CONFIG, (64, 64))

    def logprobs_of(tokens):
        logits = model.logits(model.views([*prompt, *tokens]))
        values = [raw_logprobs(logits, token, 0).logprob for token in range(9)]
        return [float(np.float32(value)) for value in values]  # as they travel

    expected = slow_search(logprobs_of, width, 7, eos, penalty)
    with LLM.from_parts(executor, ByteTokenizer(), eos=eos) as llm:
        found = llm.beam_search(prompt, width, 7, penalty)
        llm._engine.check()
    assert [(beam.score, beam.tokens) for beam in found] == expected
    assert [beam.finished for beam in found] == [t[-1] in eos for _, t in expected]


def test_beams_share_their_blocks():
    """Of a prompt of 40 tokens, each beam of each step computes its tail block only."""
    executor = FakeExecutor(FakeModel(9), CONFIG, (64,))
    with LLM.from_parts(executor, ByteTokenizer(), eos=(0,)) as llm:
        llm.beam_search((1, 2, 3, 4) * 10, 4, 6, -1.0)
    assert sum(executor.rows) <= 40 + 5 * 4 * 4


def test_it_finds_what_the_slow_search_finds_natively():
    config = RuntimeConfig(max_tokens=64, max_seqs=4, context=128, kv_tokens=512, threads=2)
    prompt, eos = tuple(range(3, 40)), (5, 11)
    slow = load_native(llama_like(), config)

    def logprobs_of(tokens):
        logits = text_logits(slow, [*prompt, *tokens], 64)[-1].astype(np.float64)
        peak = logits.max()
        return (logits - peak - math.log(np.exp(logits - peak).sum())).tolist()

    expected = slow_search(logprobs_of, 3, 6, eos, 1.0)
    with LLM.from_parts(load_native(llama_like(), config), ByteTokenizer(), eos=eos) as llm:
        found = llm.beam_search(prompt, 3, 6, 1.0)
    assert [beam.tokens for beam in found] == [tokens for _, tokens in expected]
    # 6 log-probabilities of native's float32 log-softmax, each good to 4e-6 (test_executor.py)
    scores = [score for score, _ in expected]
    np.testing.assert_allclose([beam.score for beam in found], scores, rtol=0, atol=6 * 4e-6)


@pytest.mark.parametrize(("width", "max_tokens"), [(0, 4), (20, 4), (3, 0)])
def test_what_cannot_be_searched_is_refused(width, max_tokens):
    with pytest.raises(RequestError, match=r"width must|max_tokens must"):
        BeamParams(width, max_tokens, 1.0, (7,))
