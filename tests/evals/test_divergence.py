"""The evaluator against closed forms on hand-made logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from octavo.core.errors import OctavoError, UserError
from octavo.evals.divergence import compare_rows, divergence
from octavo.evals.perplexity import perplexity
from octavo.evals.windows import split
from support.scorers import FunctionScorer, bigram_scorer

VOCAB = 50
TEXT = np.random.default_rng(0).integers(0, VOCAB, 700)


def table(seed: int, scale: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((VOCAB, VOCAB))).astype(np.float32)


def rows(*logits: list[float]) -> np.ndarray:
    return np.asarray(logits, np.float32)


def test_three_tokens_by_hand() -> None:
    p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    record = compare_rows(rows(np.log(q).tolist()), rows(np.log(p).tolist()), np.asarray([1]))
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    single = 4 * 2.0**-23  # logits are fp32, of size up to 1.4
    assert record.kl[0] == pytest.approx(expected, abs=single)
    assert record.p[0] == pytest.approx(0.5, abs=single)
    assert record.base_p[0] == pytest.approx(0.25, abs=single)
    assert not record.same_top[0]


@given(
    hnp.arrays(np.float32, (3, 7), elements=st.floats(-80, 80, width=32)),
    hnp.arrays(np.float32, (3, 7), elements=st.floats(-80, 80, width=32)),
)
def test_kl_is_never_negative_and_zero_against_itself(a: np.ndarray, b: np.ndarray) -> None:
    targets = np.asarray([0, 3, 6])
    assert (compare_rows(a, b, targets).kl >= -1e-7).all()
    itself = compare_rows(a, a, targets)
    assert (itself.kl == 0).all()
    assert itself.same_top.all()


def test_logits_may_be_shifted_by_a_constant() -> None:
    logits = table(1)[:4]
    record = compare_rows(logits + 8, logits, np.arange(4))
    # adding 8 rounds fp32 logits by up to half an ulp of 16
    assert np.abs(record.nll - record.base_nll).max() <= 2 * 2.0**-20


def test_impossible_tokens_cost_nothing_when_the_base_agrees() -> None:
    base = rows([0.0, 0.0, -np.inf])
    assert compare_rows(base, base, np.asarray([0])).kl[0] == 0
    assert compare_rows(rows([0.0, 0.0, 0.0]), base, np.asarray([0])).kl[0] == pytest.approx(
        math.log(1.5)
    )


def test_token_that_only_the_base_finds_possible_is_infinitely_far() -> None:
    record = compare_rows(rows([0.0, -np.inf]), rows([0.0, 0.0]), np.asarray([0]))
    assert record.kl[0] == np.inf


def test_a_model_against_itself() -> None:
    report = divergence(bigram_scorer(table(1)), bigram_scorer(table(1)), split(TEXT, 64))
    assert report.kl_mean.value == report.kl_max == report.kl_999.value == 0
    assert report.same_top.value == 1
    assert report.ln_ratio.value == 0
    assert report.ratio.value == 1
    assert (report.ratio.low, report.ratio.high) == (1, 1)
    assert report.rms_delta_p.value == 0
    assert report.correlation == pytest.approx(1)
    assert report.perplexity == report.base_perplexity


def test_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    flat = bigram_scorer(np.zeros((VOCAB, VOCAB), np.float32))
    report = perplexity(flat, split(TEXT, 64))
    assert report.perplexity.value == pytest.approx(VOCAB, rel=1e-12)
    assert report.tokens == sum(w.scored for w in split(TEXT, 64))


def test_figures_equal_a_plain_loop_over_tokens() -> None:
    model, base, windows = table(1), table(2), split(TEXT, 48, 31)
    losses, base_losses, kls, same = [], [], [], []
    for window in windows:
        for i in range(window.first, len(window.tokens) - 1):
            q, p = (t[window.tokens[i]].astype(np.float64) for t in (model, base))
            q, p = q - np.log(np.exp(q).sum()), p - np.log(np.exp(p).sum())
            losses.append(-q[window.tokens[i + 1]])
            base_losses.append(-p[window.tokens[i + 1]])
            kls.append((np.exp(p) * (p - q)).sum())
            same.append(q.argmax() == p.argmax())
    report = divergence(bigram_scorer(model), bigram_scorer(base), windows)
    delta = np.exp(-np.asarray(losses)) - np.exp(-np.asarray(base_losses))
    assert report.tokens == len(losses)
    assert report.perplexity.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-10)
    assert report.base_perplexity.value == pytest.approx(np.exp(np.mean(base_losses)), rel=1e-10)
    assert report.ln_ratio.value == pytest.approx(
        np.log(report.perplexity.value / report.base_perplexity.value), abs=1e-10
    )
    assert report.kl_mean.value == pytest.approx(np.mean(kls), rel=1e-10)
    assert report.kl_median.value == pytest.approx(np.median(kls), rel=1e-10)
    assert report.kl_99.value == pytest.approx(np.quantile(kls, 0.99), rel=1e-10)
    assert report.kl_max == pytest.approx(max(kls), rel=1e-10)
    assert report.same_top.value == pytest.approx(np.mean(same))
    assert report.rms_delta_p.value == pytest.approx(np.sqrt(np.mean(delta**2)), rel=1e-10)
    assert report.kl_mean.low <= report.kl_mean.value <= report.kl_mean.high


def test_pairing_makes_the_ratio_far_surer_than_the_perplexities() -> None:
    base = table(1)
    noise = 0.05 * np.random.default_rng(9).standard_normal(base.shape)
    model = base + noise.astype(np.float32)
    report = divergence(bigram_scorer(model), bigram_scorer(base), split(TEXT, 64))
    assert report.ln_ratio.error * 5 < report.perplexity.error / report.perplexity.value


def test_other_vocabulary_is_refused() -> None:
    small = bigram_scorer(np.zeros((VOCAB, VOCAB - 1), np.float32), "small")
    with pytest.raises(UserError, match="small has 49 tokens"):
        divergence(small, bigram_scorer(table(1)), split(TEXT, 64))


def test_logits_that_are_not_numbers_name_the_model() -> None:
    broken = FunctionScorer(lambda t: np.full((len(t), VOCAB), np.nan, np.float32), VOCAB, "broken")
    with pytest.raises(OctavoError, match="broken"):
        divergence(broken, bigram_scorer(table(1)), split(TEXT, 64))
    with pytest.raises(OctavoError, match="broken"):
        perplexity(broken, split(TEXT, 64))


def test_progress_counts_windows() -> None:
    seen: list[tuple[int, int]] = []
    windows = split(TEXT[:130], 64)
    scorer = bigram_scorer(table(1))
    divergence(scorer, scorer, windows, lambda done, all_: seen.append((done, all_)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_scorers_run_only_what_is_scored() -> None:
    scorer = bigram_scorer(table(1))
    perplexity(scorer, split(TEXT[:64], 32, protocol="llama.cpp"))
    assert scorer.runs == [(31, 16), (31, 16)]
