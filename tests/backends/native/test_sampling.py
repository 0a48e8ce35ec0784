"""Native sampling against its slow twin: equal, but where a draw is within 2^-20 of a boundary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import _native
from octavo.core.rng import uniform
from octavo.engine.request import SamplingParams
from octavo.engine.sampling import Counts, Draw, sample_reference

BOUNDARY = 2.0**-20
VOCAB = 700


def as_fp32(value: float) -> float:
    return float(np.float32(value))


def native_sample(
    logits: np.ndarray,
    params: SamplingParams,
    history: tuple[list[int], list[int]],
    draw: Draw,
    mask: np.ndarray | None = None,
) -> int:
    native = _native.testing.SampleParams()
    for name, value in (
        ("temperature", params.temperature),
        ("top_k", params.top_k),
        ("top_p", params.top_p),
        ("min_p", params.min_p),
        ("repetition", params.repetition_penalty),
        ("presence", params.presence_penalty),
        ("frequency", params.frequency_penalty),
        ("seed", draw.seed),
        ("position", draw.position),
        ("choice", draw.choice),
    ):
        setattr(native, name, value)
    prompt, output = (np.array(tokens, np.int32) for tokens in history)
    counted = params.penalized
    token: int = _native.testing.sample("", logits, native, prompt, output, counted, mask)
    return token


def counts_of(history: tuple[list[int], list[int]]) -> Counts:
    return Counts(*(np.bincount(np.array(t, np.int64), minlength=VOCAB) for t in history))


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 1.9]).map(as_fp32),
    top_k=st.sampled_from([0, 0, 1, 5, 40, VOCAB, 10 * VOCAB]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.01]).map(as_fp32),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]).map(as_fp32),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.7]).map(as_fp32),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.6, -1.5]).map(as_fp32),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3, -0.8]).map(as_fp32),
)
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=30)


@given(
    seed=st.integers(0, 2**64 - 1),
    spread=st.sampled_from([0.01, 1.0, 4.0, 30.0]),
    rounded=st.booleans(),
    params=PARAMS,
    history=st.tuples(TOKENS, TOKENS),
    position=st.integers(0, 10**6),
    choice=st.integers(0, 7),
)
def test_equals_its_twin(
    seed: int,
    spread: float,
    rounded: bool,
    params: SamplingParams,
    history: tuple[list[int], list[int]],
    position: int,
    choice: int,
) -> None:
    logits = (np.random.default_rng(seed).standard_normal(VOCAB) * spread).astype(np.float32)
    if rounded:  # many ties
        logits = np.round(logits)
    draw = Draw(seed, position, choice)
    want = sample_reference(logits, params, counts_of(history), draw)
    got = native_sample(logits, params, history, draw)
    assert got == want.token or want.margin < BOUNDARY


@given(
    seed=st.integers(0, 2**64 - 1),
    params=PARAMS,
    history=st.tuples(TOKENS, TOKENS),
    allowed=st.one_of(
        st.sets(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
        st.sampled_from([range(VOCAB), range(31, 65), range(690, VOCAB), range(0, VOCAB, 2)]),
    ),
)
def test_a_mask_is_minus_infinity_for_its_twin(
    seed: int,
    params: SamplingParams,
    history: tuple[list[int], list[int]],
    allowed: set[int] | range,
) -> None:
    logits = np.round(np.random.default_rng(seed).standard_normal(VOCAB) * 4).astype(np.float32)
    bits = np.zeros(-(-VOCAB // 32) * 32, np.uint8)
    bits[list(allowed)] = 1
    mask = np.packbits(bits, bitorder="little").view(np.uint32)
    masked = np.where(bits[:VOCAB] == 1, logits, -np.inf).astype(np.float32)
    draw = Draw(seed, 5)
    want = sample_reference(masked, params, counts_of(history), draw)
    got = native_sample(logits, params, history, draw, mask)
    assert got in allowed
    assert got == want.token or want.margin < BOUNDARY


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    params = SamplingParams(temperature=1.0)
    n = 4000
    tokens = [native_sample(logits, params, ([], []), Draw(9, i)) for i in range(n)]
    share = np.bincount(tokens, minlength=4) / n
    # five standard deviations of a binomial share
    np.testing.assert_allclose(share, [0.5, 0.25, 0.125, 0.125], atol=5 * np.sqrt(0.25 / n))


@pytest.mark.parametrize("isa", ["generic", ""])
def test_top_logprobs_are_sorted_and_exact(isa: str) -> None:
    logits = np.round(np.random.default_rng(3).standard_normal(VOCAB) * 8).astype(np.float32) / 4
    tokens, values = _native.testing.top_logprobs(isa, logits, 20)
    order = np.lexsort((np.arange(VOCAB), -logits.astype(np.float64)))[:20]
    wide = logits.astype(np.float64)
    logs = wide - np.log(np.exp(wide).sum())
    assert tokens == order.tolist()
    # fp32 exponentials of 2 ulp in the sum, and the result rounded to fp32
    np.testing.assert_allclose(values, logs[order], rtol=2**-22, atol=2**-22)


@pytest.mark.parametrize("isa", ["generic", ""])
def test_no_alternatives_are_none(isa: str) -> None:
    """The chosen token's log-probability alone: what `logprobs: true` asks for in a chat."""
    assert _native.testing.top_logprobs(isa, np.ones(VOCAB, np.float32), 0) == ([], [])


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1), st.integers(0, 100))
def test_draws_are_pythons(seed: int, position: int, choice: int) -> None:
    assert _native.testing.uniform_draw(seed, position, choice, 0) == uniform(
        seed, position, choice
    )


@pytest.mark.parametrize("isa", _native.testing.isas())
@pytest.mark.parametrize("seed", range(40))
def test_a_cut_at_a_boundary_is_decided_in_fp64(isa: str, seed: int) -> None:
    """top_p is the first token's probability, rounded to fp32: closer than an fp32 sum can tell."""
    logits = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)
    best = int(np.argmax(logits))
    logits[best] += np.float32(5)
    logits[best - 1] = logits[best] - np.float32(0.3)  # drawn often, if it is kept
    temperature = as_fp32(0.7)
    weights = np.exp((logits.astype(np.float64) - float(logits[best])) / temperature)
    native = _native.testing.SampleParams()
    native.temperature, native.top_p = temperature, as_fp32(1 / weights.sum())
    none = np.zeros(0, np.int32)
    drawn = set()
    for native.position in range(200):
        drawn.add(_native.testing.sample(isa, logits, native, none, none, False))
    alone = native.top_p * weights.sum() <= 1
    assert (drawn == {best}) == alone
