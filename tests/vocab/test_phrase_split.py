"""Which of the phrases that begin alike it is: told by the hidden state, from what the base model
says and not from what came."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from octavo.io.phrases import PhraseTable  # noqa: E402
from octavo.vocab.phrase_split import Reader, Splitter, Text, visits  # noqa: E402
from octavo.vocab.phrase_start import constant_direction  # noqa: E402
from octavo.vocab.phrase_tree import PhraseTree  # noqa: E402

F32 = npt.NDArray[np.float32]
HIDDEN, VOCAB = 8, 8
TABLE = PhraseTable(VOCAB, [(1, 2), (1, 3)])
DRAWS = np.random.default_rng(0)
HEAD = DRAWS.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
AFTER = (DRAWS.standard_normal((HIDDEN, HIDDEN)) / HIDDEN**0.5).astype(np.float32)


def alternating(count: int, seed: int) -> Text:
    """7 1 7 1 ...: no phrase ever comes. Behind a 1 the state is a linear map of the one before."""
    before = np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)
    before[:, 0] = 1  # a constant coordinate, so that a share has an exact direction
    states = np.stack([before, before @ AFTER], axis=1).reshape(-1, HIDDEN)
    return Text(np.tile([7, 1], count), 2 * count, states)


def softmax(logits: F32) -> F32:
    likely = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return likely / likely.sum(axis=-1, keepdims=True)


def wanted(text: Text) -> F32:
    """Of 1 alone, (1, 2) and (1, 3), at every place where a 1 comes."""
    p = softmax(text.states[1::2] @ HEAD.T)[:, [2, 3]]
    return np.concatenate([1 - p.sum(axis=1, keepdims=True), p], axis=1)


def divergence(expected: F32, found: F32) -> float:
    return float((expected * np.log(expected / found)).sum(axis=1).mean())


def test_choices_are_visited_where_their_tokens_are_predicted() -> None:
    table = PhraseTable(8, [(1, 2), (1, 2, 3), (5, 6)])
    text = Text(np.array([7, 1, 2, 3, 5, 0, 1, 2, 4, 1]), 5, np.zeros((10, 4), np.float32))
    seen = visits(text, PhraseTree(table))
    found = {token: (where.read.tolist(), where.at.tolist()) for token, where in seen.items()}
    # windows 7 (1 2 3) 5 and 0 (1 2) 4 1; a window's first token is only read
    assert found == {1: ([0, 5, 8], [1, 6, 9]), 8: ([0, 5], [2, 7]), 5: ([3], [4])}


def test_the_split_follows_the_state_and_the_sum_stays() -> None:
    text, other = alternating(4000, 1), alternating(2000, 2)
    shares = wanted(text).mean(axis=0)
    begun = np.zeros((VOCAB + 2, HIDDEN), np.float32)
    for token, share in zip((1, 8, 9), shares, strict=True):
        begun[token] = np.log(share) * constant_direction(text.states[::2])
    found = Splitter(text, Reader(text, HEAD, None), PhraseTree(TABLE)).shifts(begun)
    assert not found[[0, *range(2, 8)]].any()
    states = other.states[::2]
    logits = states @ found[[1, 8, 9]].T
    fitted = divergence(wanted(other), softmax(logits))
    # linear logits can't follow these quite, but far better than not at all
    assert fitted < 0.5 * divergence(wanted(other), np.broadcast_to(shares, (2000, 3)))
    # what the group has together: as the start has it, but for what no direction can undo
    sums = np.log(np.exp(logits).sum(axis=1))
    assert abs(sums.mean()) < 0.1
    assert sums.std() < 0.5 * logits.std(axis=0).max()


def test_a_softcap_is_of_what_the_base_model_says() -> None:
    """Capped at almost nothing, all tokens are equally likely after a 1: 6 in 8 that it stops."""
    begun = np.zeros((VOCAB + 2, HIDDEN), np.float32)
    text = alternating(4000, 1)
    found = Splitter(text, Reader(text, HEAD, 1e-4), PhraseTree(TABLE)).shifts(begun)
    likely = softmax(text.states[::2] @ found[[1, 8, 9]].T).mean(axis=0)
    np.testing.assert_allclose(likely, [0.75, 0.125, 0.125], atol=0.02)
