from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import TokenizerError
from octavo.io import gguf_tokenizer
from octavo.io.gguf_tokenizer import tokenizer_from_gguf
from octavo.io.pre_tokenizers import known_pre_tokenizers
from octavo.io.tokenizer import Tokenizer, load_tokenizer
from support.models import demo_model, vocabulary_oracles
from support.tokenizers import (
    CHATML,
    byte_letters,
    byte_level_metadata,
    byte_level_tokenizer,
    save_directory,
    sentencepiece_metadata,
    sentencepiece_tokenizer,
)

TEXT = "hello <|im_end|> wörld\n\n  12345 don't 你好 🦜"


@pytest.mark.parametrize("pre", sorted(known_pre_tokenizers()))
def test_every_pre_tokenizer_builds_and_loses_nothing(pre: str) -> None:
    tokenizer = byte_level_tokenizer(pre)
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special=False)) == TEXT


@given(text=st.text(max_size=60))
def test_byte_level_text_survives(text: str) -> None:
    tokenizer = byte_level_tokenizer()
    ids = tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@given(text=st.text(max_size=40))
def test_sentencepiece_text_survives(text: str) -> None:
    tokenizer = sentencepiece_tokenizer()
    ids = tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_merges_are_used_and_control_tokens_are_text_unless_asked() -> None:
    tokenizer = byte_level_tokenizer()
    assert tokenizer.encode("hello", add_special=False) == [3 + 256 + 3]
    assert tokenizer.encode("<|im_end|>", add_special=False, parse_special=True) == [2]
    spelled = tokenizer.encode("<|im_end|>", add_special=False)
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.special_ids.isdisjoint(spelled)
    assert tokenizer.decode(spelled) == "<|im_end|>"
    assert tokenizer.decode([1, *spelled, 2]) == "<|im_end|>"
    assert tokenizer.decode([1], skip_special=False) == "<|im_start|>"


def test_plain_text_holds_no_added_token_at_all() -> None:
    tokenizer = byte_level_tokenizer()
    tool = tokenizer.token_id("<tool>")
    assert tokenizer.encode("<tool>", add_special=False) == [tool]
    assert tool not in tokenizer.encode_plain("<tool>")
    assert tokenizer.decode(tokenizer.encode_plain("<tool>")) == "<tool>"


def test_plain_text_is_spelled_when_whole_words_are_looked_up() -> None:
    # ignore_merges takes a word that is a token as that token, and here "<|im_end|>" is one word.
    tokenizer = byte_level_tokenizer("llama-bpe")
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode_plain("<|im_end|>"))


def test_sentencepiece_merges_come_from_scores() -> None:
    tokenizer = sentencepiece_tokenizer()
    # "▁he" (-1) is made before "▁h" (-2) could be, then "ll" (-3), then "▁hell", "▁hello".
    assert tokenizer.encode("hello", add_special=False) == [tokenizer.token_id("▁hello")]
    he_ll = [tokenizer.token_id("▁he"), tokenizer.token_id("ll")]
    pieces = tokenizer_from_gguf(sentencepiece_metadata()).backend.get_vocab()
    assert set(he_ll) <= set(pieces.values())


def test_one_begin_token_and_never_two() -> None:
    tokenizer = sentencepiece_tokenizer()
    bare = tokenizer.encode("hello", add_special=False)
    assert tokenizer.encode("hello") == [1, *bare]
    assert tokenizer.encode("<s>hello", parse_special=True)[:2] != [1, 1]
    assert tokenizer.encode("<s>hello", parse_special=True)[0] == 1


def test_begin_and_end_tokens_as_the_file_says() -> None:
    flags = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    tokenizer = sentencepiece_tokenizer(**flags)
    assert tokenizer.encode("hello") == [*tokenizer.encode("hello", add_special=False), 2]


def test_what_ends_an_answer() -> None:
    # The file names <|im_end|>; <|endoftext|> ends answers wherever it is a control token.
    assert byte_level_tokenizer().eos_ids == (2, 0)
    assert byte_level_tokenizer(**{"tokenizer.ggml.eot_token_id": 1}).eos_ids == (2, 1, 0)


def test_unknown_ids_are_empty() -> None:
    tokenizer = byte_level_tokenizer()
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"surrogate at character 1"):
        byte_level_tokenizer().encode("a\ud800")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "nobody-knows"}, r"'nobody-knows'.*known are .*qwen2.*smollm"),
        ({"tokenizer.ggml.model": "t5"}, r"'t5'; known are gpt2"),
        ({"tokenizer.ggml.tokens": []}, r"tokens is empty"),
        ({"tokenizer.ggml.tokens": "abc"}, r"tokens must be a list"),
        ({"tokenizer.ggml.tokens": [1, 2]}, r"strings only"),
        ({"tokenizer.ggml.merges": ["ab"]}, r"'ab', which is not a pair"),
        ({"tokenizer.ggml.merges": ["q zz"]}, r"merges"),
        ({"tokenizer.ggml.token_type": [1]}, r"one number per token"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, r"eos_token_id is 1000000"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, r"add_bos_token must be true or false"),
    ],
)
def test_bad_metadata_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=f"m.gguf: .*{message}"):
        load_tokenizer(Path("m.gguf"), byte_level_metadata(**change))


@pytest.mark.parametrize("key", ["model", "pre", "tokens", "merges"])
def test_missing_metadata_is_named(key: str) -> None:
    metadata = byte_level_metadata()
    del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(TokenizerError, match=f"lacks tokenizer.ggml.{key}"):
        load_tokenizer(Path("m.gguf"), metadata)


def test_derived_merges_are_kept_and_a_damaged_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    monkeypatch.setattr(gguf_tokenizer, "_CACHE_ABOVE", 0)
    want = sentencepiece_tokenizer().to_json()
    (kept,) = (tmp_path / "merges").iterdir()
    content = kept.read_bytes()
    assert sentencepiece_tokenizer().to_json() == want
    for damage in (b"", content[:-3], np.int64(9).tobytes()):
        kept.write_bytes(damage)
        assert sentencepiece_tokenizer().to_json() == want
        assert kept.read_bytes() == content


class TestDirectory:
    def test_equals_the_backend_it_was_saved_from(self, tmp_path: Path) -> None:
        tokenizer = byte_level_tokenizer()
        loaded = load_tokenizer(save_directory(tmp_path, tokenizer, eos_token="<|im_end|>"))
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT, add_special=False)
        assert loaded.eos_ids == (2,)
        assert loaded.named_tokens == {"eos_token": "<|im_end|>"}

    @pytest.mark.parametrize("add_bos", [True, False])
    def test_add_bos_token_overrides(self, tmp_path: Path, add_bos: bool) -> None:
        bos = {"content": "<|endoftext|>"}
        path = save_directory(
            tmp_path, byte_level_tokenizer(), bos_token=bos, add_bos_token=add_bos
        )
        loaded = load_tokenizer(path)
        assert loaded.bos_id == 0
        assert (loaded.encode("hello")[0] == 0) == add_bos

    def test_a_post_processor_is_read(self, tmp_path: Path) -> None:
        path = save_directory(tmp_path, byte_level_tokenizer())
        state = json.loads((path / "tokenizer.json").read_text())
        begin = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        tokens = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
        single = [begin, text]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        state["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": tokens,
        }
        (path / "tokenizer.json").write_text(json.dumps(state))
        loaded = load_tokenizer(path)
        assert loaded.encode("hello") == [0, *loaded.encode("hello", add_special=False)]
        assert loaded.encode("<|endoftext|>hello", parse_special=True).count(0) == 1

    def test_all_declared_end_tokens(self, tmp_path: Path) -> None:
        path = save_directory(tmp_path, byte_level_tokenizer(), eos_token="<|im_end|>")
        (path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
        assert load_tokenizer(path).eos_ids == (2, 0)

    @pytest.mark.parametrize(
        "value", ["T", [{"name": "x", "template": "X"}, {"name": "default", "template": "T"}]]
    )
    def test_template_in_the_config(self, tmp_path: Path, value: object) -> None:
        path = save_directory(tmp_path, byte_level_tokenizer(), chat_template=value)
        assert load_tokenizer(path).chat_template == "T"
        (path / "chat_template.jinja").write_text("own file wins")
        assert load_tokenizer(path).chat_template == "own file wins"

    def test_missing_and_damaged_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
            load_tokenizer(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(TokenizerError, match=r"tokenizer\.json is damaged"):
            load_tokenizer(tmp_path)
        save_directory(tmp_path, byte_level_tokenizer())
        (tmp_path / "tokenizer_config.json").write_text("[")
        with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not valid JSON"):
            load_tokenizer(tmp_path)


def test_token_bytes_follow_the_byte_table() -> None:
    tokenizer = byte_level_tokenizer()
    ids = [tokenizer.token_id(letter) for letter in byte_letters()]
    assert [tokenizer.token_bytes(i) for i in ids if i is not None] == [
        bytes([byte]) for byte in range(256)
    ]
    pieces = sentencepiece_tokenizer()
    assert [pieces.token_bytes(3 + byte) for byte in range(256)] == [
        bytes([byte]) for byte in range(256)
    ]
    assert pieces.token_bytes(pieces.token_id("▁hello") or 0) == b" hello"


def test_the_template_of_a_file() -> None:
    assert byte_level_tokenizer().chat_template == CHATML
    assert byte_level_tokenizer(**{"tokenizer.chat_template": None}).chat_template is None


@pytest.mark.network
def test_vocabulary_oracles() -> None:
    """Every encoding that llama.cpp expects of its vocabulary files (bert's WordPiece apart)."""
    checked = 0
    for path in vocabulary_oracles():
        if "bert" in path.name:
            continue
        tokenizer = load_tokenizer(path)
        for text, ids in zip_longest(_texts(path), _expected(path), fillvalue=""):
            want = [int(i) for i in str(ids).split()]
            assert tokenizer.encode(str(text), add_special=False) == want, (path.name, text)
            checked += 1
    assert checked >= 567


def _texts(path: Path) -> list[str]:
    with path.with_suffix(".gguf.inp").open(encoding="utf-8", newline="") as file:
        return file.read().split("\n__ggml_vocab_test__\n")


def _expected(path: Path) -> list[str]:
    return path.with_suffix(".gguf.out").read_text(encoding="utf-8").splitlines()


@pytest.mark.network
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"])
def test_demo_models_round_trip(name: str) -> None:
    tokenizer: Tokenizer = load_tokenizer(demo_model(name))
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.special_ids.isdisjoint(ids[len(tokenizer.encode("")) :])
