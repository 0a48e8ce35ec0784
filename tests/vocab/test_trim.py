"""Trimmed vocabularies: the same text in the same pieces, and the same logits bit for bit."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backends.base import RuntimeConfig
from octavo.backends.native.backend import load
from octavo.core.errors import UnsupportedError, UserError
from octavo.evals.scorer import ExecutorScorer
from octavo.io.checkpoint import open_model
from octavo.io.tokenizer import Tokenizer, load_tokenizer
from octavo.vocab.job import trim_model
from octavo.vocab.trim import Merges, kept_ids, trim_tokenizer
from support.small_models import talking_model
from support.tokenizers import byte_level_tokenizer, save_directory, sentencepiece_tokenizer

MAKERS = {"bytes": byte_level_tokenizer, "pieces": sentencepiece_tokenizer}


def trimmed(tokenizer: Tokenizer, texts: list[str], directory: Path) -> tuple[Tokenizer, list[int]]:
    content = json.loads(tokenizer.to_json())
    kept = kept_ids(content, {i for text in texts for i in tokenizer.encode(text)})
    save_directory(directory, tokenizer)
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(trim_tokenizer(content, kept)), encoding="utf-8")
    return load_tokenizer(directory), [int(i) for i in kept]


@pytest.mark.parametrize("kind", MAKERS)
def test_texts_of_the_corpus_keep_their_segmentation(kind: str, tmp_path: Path) -> None:
    tokenizer = MAKERS[kind]()
    texts = ["hell", "hello hell", "he"]
    small, kept = trimmed(tokenizer, texts, tmp_path)
    assert small.vocab_size == len(kept)
    for text in texts:
        old = tokenizer.encode(text, add_special=False)
        assert [kept[i] for i in small.encode(text, add_special=False)] == old


@pytest.mark.parametrize("kind", MAKERS)
def test_what_leads_to_a_kept_token_is_kept_and_the_rest_goes(kind: str, tmp_path: Path) -> None:
    tokenizer = MAKERS[kind]()
    small, _ = trimmed(tokenizer, ["hell"], tmp_path)
    assert small.token_id("ll") is not None
    assert small.token_id("hello") is None
    assert small.vocab_size < tokenizer.vocab_size


BYTES, PIECES = (maker() for maker in MAKERS.values())


@pytest.fixture(scope="module")
def small_ones(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    pairs = ((BYTES, "bytes"), (PIECES, "pieces"))
    return [trimmed(t, ["hell"], tmp_path_factory.mktemp(name))[0] for t, name in pairs]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_makes_the_round_trip(small_ones: list[Tokenizer], text: str) -> None:
    for small in small_ones:
        assert small.decode(small.encode(text, add_special=False), skip_special=False) == text


def test_merge_paths_follow_the_ranks() -> None:
    """a+b comes before b+c, so abc is never made through bc."""
    vocab = {text: i for i, text in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    model = {"type": "BPE", "vocab": vocab, "merges": ["a b", "b c", "ab c", "a bc"]}
    assert Merges(model).pieces("abc") == {"a", "b", "c", "ab", "abc"}
    assert Merges(model).pieces("bc") == {"b", "c", "bc"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    model = talking_model(root / "whole")
    assert trim_model(model, root / "small", ["he ll"]) == (264, 262)
    return model, root / "small"


def logits(path: Path, text: str) -> tuple[np.ndarray, Tokenizer]:
    config = RuntimeConfig(context=64, max_seqs=1, format="source")
    with open_model(path) as model:
        tokenizer = load_tokenizer(path)
        with closing(ExecutorScorer(load(model.spec, model.source, config), "it")) as scorer:
            tokens = tokenizer.encode(text, add_special=False)
            return np.concatenate([b.copy() for b in scorer.logits(tokens, 0, 16)]), tokenizer


def test_native_logits_of_kept_tokens_are_the_same_bits(both: tuple[Path, Path]) -> None:
    text = "he\n\tx he ll he"
    (whole, old), (small, new) = logits(both[0], text), logits(both[1], text)
    pieces = json.loads(new.to_json())["model"]["vocab"]
    added = {entry["content"]: entry["id"] for entry in json.loads(new.to_json())["added_tokens"]}
    for piece, i in {**pieces, **added}.items():
        assert np.array_equal(small[:, i], whole[:, old.token_id(piece)]), piece
    assert whole.shape[1] > small.shape[1] == len({**pieces, **added})


def test_special_tokens_keep_their_meaning(both: tuple[Path, Path]) -> None:
    old, new = (load_tokenizer(path) for path in both)
    assert old.added_tokens.keys() == new.added_tokens.keys()
    assert new.bos_id == new.token_id("<|endoftext|>")
    texts = [[t.token_bytes(i) for i in t.eos_ids] for t in (old, new)]
    assert texts[0] == texts[1]


def test_bad_input(tmp_path: Path) -> None:
    content = json.loads(BYTES.to_json())
    with pytest.raises(UserError, match="no tokens"):
        kept_ids(content, [])
    content["model"]["type"] = "Unigram"
    with pytest.raises(UnsupportedError, match="Unigram"):
        kept_ids(content, [3])
    model = talking_model(tmp_path / "m")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        trim_model(model, tmp_path / "out", ["a"])
