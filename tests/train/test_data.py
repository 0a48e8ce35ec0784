"""Windows: every token predicted once, held out means held out, order is a pure function."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import UserError
from octavo.train.data import batches, make_corpus, split_corpus


@given(st.integers(2, 9), st.integers(20, 60))
def test_every_token_but_the_first_is_predicted_once(context: int, length: int) -> None:
    train = make_corpus(range(length), range(1000, 1030), context).train
    assert train.shape[1] == context + 1
    predicted = train[:, 1:].flatten().tolist()
    assert predicted == list(range(1, len(predicted) + 1))
    assert length - 1 - len(predicted) < context


@given(st.integers(2, 9), st.integers(20, 60))
def test_bos_begins_every_window_and_every_token_is_predicted(context: int, length: int) -> None:
    train = make_corpus(range(length), range(1000, 1030), context, bos=7).train
    assert (train[:, 0] == 7).all()
    predicted = train[:, 1:].flatten().tolist()
    assert predicted == list(range(len(predicted)))


def test_a_split_holds_out_the_end() -> None:
    corpus = split_corpus(range(100), 5, share=0.2)
    assert corpus.train.max() < 80 <= corpus.held_out.min()
    assert corpus.context == 5
    assert corpus.digest() == split_corpus(range(100), 5, share=0.2).digest()
    assert corpus.digest() != split_corpus(range(100), 6, share=0.2).digest()


@pytest.mark.parametrize("bos", [None, 5])
def test_overlapping_texts_are_refused(bos: int | None) -> None:
    with pytest.raises(UserError, match="held-out text overlaps the training text"):
        make_corpus(range(100), range(43, 60), 4, bos)
    make_corpus(range(100), range(98, 120), 4, bos)  # two tokens in common are no window


@given(st.lists(st.integers(0, 2), min_size=6, max_size=40), st.integers(0, 2**32))
def test_a_copy_anywhere_is_found_and_nothing_else(text: list[int], seed: int) -> None:
    held_out = np.random.default_rng(seed).integers(0, 3, 9).tolist()
    windows = [held_out[0:5], held_out[4:9]]
    copied = any(text[i : i + 5] in windows for i in range(len(text) - 4))
    if not copied:
        make_corpus(text, held_out, 4)
        return
    with pytest.raises(UserError, match="overlaps"):
        make_corpus(text, held_out, 4)


def test_a_copy_at_the_very_end_is_found() -> None:
    with pytest.raises(UserError, match="overlaps"):
        make_corpus(range(50), range(45, 50), 4)


@pytest.mark.parametrize(
    ("train", "held_out", "context", "message"),
    [
        (0, 50, 4, "the training text has 0 tokens"),
        (50, 4, 4, "the held-out text has 4 tokens; a window needs 5"),
        (50, 50, 1, "context 1 is too short"),
    ],
)
def test_texts_without_a_window_are_refused(
    train: int, held_out: int, context: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_corpus(range(train), range(1000, 1000 + held_out), context)


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_a_share_that_leaves_a_side_empty_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        split_corpus(range(100), 4, share)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 20), st.integers(0, 2**32))
def test_batches_resume_anywhere(windows: int, size: int, start: int, seed: int) -> None:
    whole = list(itertools.islice(batches(windows, size, seed, 0), start + 3))
    assert np.array_equal(
        whole[start:], list(itertools.islice(batches(windows, size, seed, start), 3))
    )


def test_an_epoch_holds_every_window_once_and_epochs_differ() -> None:
    drawn = np.concatenate(list(itertools.islice(batches(12, 4, 3, 0), 6)))
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == list(range(12))
    assert not np.array_equal(drawn[:12], drawn[12:])
