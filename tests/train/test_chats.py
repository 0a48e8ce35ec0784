"""Conversations: answers count and nothing else, whatever is around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.errors import TokenizerError, UserError
from octavo.io.tokenizer_parts import TokenizerParts
from octavo.train.chats import chat_corpus, marked, read_chats
from support.tokenizers import byte_level_tokenizer

FIRST = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hell"},
    {"role": "user", "content": "o"},
    {"role": "assistant", "content": "he"},
]
SECOND = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
THIRD = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]


def test_answers_and_their_ends_are_marked() -> None:
    tokenizer = byte_level_tokenizer()
    ids, answer = marked(tokenizer, FIRST)
    counted = [i for i, ours in zip(ids, answer, strict=True) if ours]
    assert tokenizer.decode(counted, skip_special=False) == "hell<|im_end|>\nhe<|im_end|>\n"


def test_windows_predict_answers_alone() -> None:
    tokenizer = byte_level_tokenizer()
    corpus = chat_corpus(tokenizer, [FIRST, SECOND], [THIRD], 64)
    assert corpus.train.shape == (2, 65)
    assert corpus.train_weights is not None
    predicted = corpus.train[0, 1:][corpus.train_weights[0] > 0].tolist()
    assert tokenizer.decode(predicted, skip_special=False) == "hell<|im_end|>\nhe<|im_end|>\n"
    ids, _ = marked(tokenizer, SECOND)
    assert corpus.train[1, : len(ids)].tolist() == ids
    assert not corpus.train_weights[1, len(ids) - 1 :].any()


def test_a_long_conversation_is_cut() -> None:
    tokenizer = byte_level_tokenizer()
    ids, answer = marked(tokenizer, FIRST)
    context = answer.index(True)  # the window ends with the answer's first token
    corpus = chat_corpus(tokenizer, [FIRST], [THIRD + THIRD], 40)
    assert corpus.context == 40
    cut = chat_corpus(tokenizer, [FIRST], [FIRST[:2]], context)
    assert cut.train[0].tolist() == ids[: context + 1]
    assert cut.train_weights is not None
    assert np.flatnonzero(cut.train_weights[0]).tolist() == [context - 1]
    with pytest.raises(UserError, match=r"training conversation 1: no answer .* within"):
        chat_corpus(tokenizer, [FIRST], [SECOND], context - 1)


def test_empty_overlapping_and_answerless_parts_are_refused() -> None:
    tokenizer = byte_level_tokenizer()
    with pytest.raises(UserError, match="1 held-out conversations are among the training"):
        chat_corpus(tokenizer, [FIRST, SECOND], [SECOND], 64)
    with pytest.raises(UserError, match="held-out part holds no conversation"):
        chat_corpus(tokenizer, [FIRST], [], 64)
    with pytest.raises(UserError, match="conversation 1: no answer"):
        chat_corpus(tokenizer, [FIRST[:1]], [SECOND], 64)


def with_template(template: str | None) -> Any:
    tokenizer = byte_level_tokenizer()
    parts = {name: getattr(tokenizer._parts, name) for name in TokenizerParts.__slots__}
    return type(tokenizer)(TokenizerParts(**{**parts, "chat_template": template}))


def test_a_template_that_rewrites_earlier_answers_is_refused() -> None:
    last_only = (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }};"
        "{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match="message 2: the chat template writes it otherwise"):
        marked(with_template(last_only), FIRST)


def test_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        marked(with_template(None), FIRST)


def test_files_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": c}) for c in (FIRST, SECOND)) + "\n\n")
    assert read_chats(path) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no conversation"),
        ("\n{nope", "line 2 is not JSON"),
        ('{"text": "a"}', 'line 1 needs "messages"'),
        ('{"messages": []}', 'line 1 needs "messages"'),
        ('{"messages": [{"role": 3, "content": ""}]}', 'line 1 needs "messages"'),
        ('{"messages": [{"role": "user"}]}', 'line 1 needs "messages"'),
        ("[1]", 'line 1 needs "messages"'),
    ],
)
def test_files_that_are_no_conversations_are_refused(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_chats(path)
    with pytest.raises(UserError, match="can't be read"):
        read_chats(tmp_path / "absent.jsonl")
