"""Texts and the token sequences cut from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.compress.calibration import digest, read_texts, sequences
from octavo.compress.recipe import Calibration
from octavo.core.errors import UserError

TOKENS = list(range(1000))


def test_sequences_are_slices_spread_over_the_text() -> None:
    found = sequences(TOKENS, Calibration("", 4, 50), 128, None)
    assert found.shape == (4, 50)
    assert np.array_equal(found - found[:, :1], np.broadcast_to(np.arange(50), (4, 50)))
    assert [int(first) // 250 for first in found[:, 0]] == [0, 1, 2, 3]
    assert all(int(row[-1]) // 250 == n for n, row in enumerate(found))


def test_each_begins_with_the_begin_token_where_the_model_has_one() -> None:
    found = sequences(TOKENS, Calibration("", 3, 20), 128, 7)
    assert found.shape == (3, 20)
    assert (found[:, 0] == 7).all()
    assert (np.diff(found[:, 1:]) == 1).all()


def test_seeds_choose_other_slices_and_the_digest_tells_them_apart() -> None:
    settings = Calibration("", 4, 50)
    one, two = (sequences(TOKENS, settings, 128, None, seed) for seed in (0, 1))
    assert not np.array_equal(one, two)
    assert digest(one) != digest(two)
    assert digest(one) == digest(sequences(TOKENS, settings, 128, None, 0))
    assert digest(one) != digest(one.reshape(2, 100))


def test_length_is_cut_to_the_models_context() -> None:
    assert sequences(TOKENS, Calibration("", 4, 2048), 128, None).shape == (4, 128)


def test_a_text_that_exactly_fits_is_taken_whole() -> None:
    assert np.array_equal(
        sequences(TOKENS, Calibration("", 10, 100), 128, None).reshape(-1), TOKENS
    )


def test_a_short_text_says_what_would_fit() -> None:
    with pytest.raises(UserError, match="--sequences 10"):
        sequences(TOKENS, Calibration("", 11, 100), 128, None)
    with pytest.raises(UserError, match="--length 60"):
        sequences(TOKENS[:60], Calibration("", 2, 100), 128, None)


def test_halves_of_a_file_meet_at_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("first line\n" * 10)
    texts = read_texts(str(path))
    assert texts.name == "notes.txt"
    assert texts.calibration + texts.evaluation == "first line\n" * 10
    assert texts.calibration.endswith("\n")
    assert len(texts.evaluation) >= 40


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "empty"), (b" \n ", "empty"), (b"a\xff", "byte 1 is not UTF-8")]
)
def test_unusable_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_texts(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.txt"):
        read_texts(str(tmp_path / "absent.txt"))
