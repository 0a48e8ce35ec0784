"""Phrases over a vocabulary: longest ones first, exact round trips, damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.errors import TokenizerError
from octavo.io.phrases import PHRASES, PhraseTable, read_phrases
from octavo.io.tokenizer import Tokenizer, load_tokenizer
from support.tokenizers import byte_level_tokenizer, save_directory, sentencepiece_tokenizer

TABLES = st.lists(
    st.lists(st.integers(0, 3), min_size=2, max_size=4).map(tuple), unique=True, max_size=8
).map(lambda phrases: PhraseTable(10, phrases))


@settings(max_examples=200, deadline=None)
@given(table=TABLES, tokens=st.lists(st.integers(0, 4), max_size=9).map(tuple))
def test_the_longest_phrase_is_taken_from_left_to_right_and_can_be_undone(
    table: PhraseTable, tokens: tuple[int, ...]
) -> None:
    joined = table.joined(tokens)
    assert table.split(joined) == list(tokens)
    at = 0
    for token in joined:
        parts = table.parts(token)
        assert not any(
            tokens[at : at + size] in set(table.phrases)
            for size in range(len(parts) + 1, len(tokens) - at + 1)
        )
        at += len(parts)


def with_phrases(directory: Path, tokenizer: Tokenizer, texts: list[str]) -> Tokenizer:
    save_directory(directory, tokenizer, bos_token="<s>")
    phrases = [tokenizer.encode_plain(text) for text in texts]
    table = PhraseTable(tokenizer.vocab_size, phrases)
    (directory / PHRASES).write_text(json.dumps(table.to_json()), encoding="utf-8")
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tokenizer, Tokenizer]]:
    made = []
    for make in (byte_level_tokenizer, sentencepiece_tokenizer):
        directory = tmp_path_factory.mktemp("phrases")
        texts = [" hello he", "\n    self", "hell hell hell"]
        made.append((make(), with_phrases(directory, make(), texts)))
    return made


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=30), st.text("helo \n", max_size=40)))
def test_any_text_makes_the_round_trip_in_no_more_tokens(
    pairs: list[tuple[Tokenizer, Tokenizer]], text: str
) -> None:
    for base, phrased in pairs:
        ids = phrased.encode(text, add_special=False)
        assert phrased.phrases is not None
        assert phrased.phrases.split(ids) == base.encode(text, add_special=False)
        assert phrased.decode(ids, skip_special=False) == base.decode(
            base.encode(text, add_special=False), skip_special=False
        )
        assert len(ids) <= len(base.encode(text, add_special=False))


def test_phrases_are_used_by_every_way_to_encode(
    pairs: list[tuple[Tokenizer, Tokenizer]],
) -> None:
    base, phrased = pairs[0]
    text = "\n    self hello he"
    for way in ("encode", "encode_plain", "encode_continuation", "encode_literal"):
        assert len(getattr(phrased, way)(text)) < len(getattr(base, way)(text)), way
    first = base.vocab_size
    assert phrased.token_bytes(first + 1) == b"\n    self"
    assert phrased.token_bytes(first + 3) == b""
    assert phrased.vocab_size == first + 3


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    for phrases in ([(1,)], [(1, 10)], [(1, 2), (1, 2)], [tuple([1] * 65)]):
        with pytest.raises(TokenizerError):
            PhraseTable(10, phrases)
    assert read_phrases(tmp_path) is None
    good = PhraseTable(10, [(1, 2)]).to_json()
    wrong = ({**good, "format": 1}, {**good, "first": "x"}, {**good, "phrases": [[1, 2.5]]},
             {**good, "phrases": 3}, [])  # fmt: skip
    for bad in ("{", *map(json.dumps, wrong)):
        (tmp_path / PHRASES).write_text(bad, encoding="utf-8")
        with pytest.raises(TokenizerError, match=r"phrases\.json"):
            read_phrases(tmp_path)
