"""Positions that a protocol scores: against llama.cpp's rule and against each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import UserError
from octavo.evals.windows import Window, split


def targets(window: Window) -> list[int]:
    return list(window.tokens[window.first + 1 :])


def test_llama_cpp_scores_the_second_half_of_three_chunks() -> None:
    windows = split(range(100, 126), 8, protocol="llama.cpp")
    assert [list(w.tokens) for w in windows] == [
        list(range(100 + 8 * c, 108 + 8 * c)) for c in range(3)
    ]
    # n_ctx / 2 .. n_ctx - 2 are the positions whose logits count
    assert [w.first for w in windows] == [4, 4, 4]
    assert [w.scored for w in windows] == [3, 3, 3]
    assert targets(windows[1]) == [113, 114, 115]


def test_llama_cpp_overwrites_the_first_token_of_every_chunk_with_bos() -> None:
    windows = split(range(10, 26), 8, bos=1, protocol="llama.cpp")
    assert [list(w.tokens) for w in windows] == [
        [1, 10, 11, 12, 13, 14, 15, 16],
        [1, 18, 19, 20, 21, 22, 23, 24],
    ]


def test_standard_windows_without_bos_pass_over_their_first_token() -> None:
    windows = split(range(10), 4)
    assert [list(w.tokens) for w in windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [targets(w) for w in windows] == [[1, 2, 3], [5, 6, 7], [9]]


def test_standard_windows_with_bos_score_every_token() -> None:
    windows = split(range(2, 10), 4, bos=1)
    assert all(w.tokens[0] == 1 and len(w.tokens) <= 4 for w in windows)
    assert [t for w in windows for t in targets(w)] == list(range(2, 10))


@given(
    length=st.integers(2, 90),
    context=st.integers(3, 20),
    stride=st.integers(1, 20),
    bos=st.sampled_from([None, 1000]),
)
def test_a_stride_scores_every_token_once_with_the_context_before_it(
    length: int, context: int, stride: int, bos: int | None
) -> None:
    stride = min(stride, context - 1)
    windows = split(range(length), context, stride, bos)
    scored = [t for w in windows for t in targets(w)]
    assert scored == list(range(0 if bos is not None else 1, length))
    for window in windows:
        body = list(window.tokens[bos is not None :])
        assert len(window.tokens) <= context
        assert body == list(range(body[0], body[0] + len(body)))


@pytest.mark.parametrize("context", [0, 1])
def test_context_that_leaves_nothing_is_refused(context: int) -> None:
    with pytest.raises(UserError, match="nothing to score"):
        split(range(9), context)


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_stride_out_of_range_is_refused(stride: int) -> None:
    with pytest.raises(UserError, match="stride"):
        split(range(20), 8, stride)


def test_short_text_says_both_numbers() -> None:
    with pytest.raises(UserError, match="7 tokens, and 8"):
        split(range(7), 8, protocol="llama.cpp")
    with pytest.raises(UserError, match="1 tokens, and 2"):
        split(range(1), 8)


def test_llama_cpp_refuses_a_stride() -> None:
    with pytest.raises(UserError, match="--stride"):
        split(range(64), 8, 4, protocol="llama.cpp")
