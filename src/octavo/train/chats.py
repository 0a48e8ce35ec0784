"""Conversations in JSON lines as training windows: only what the assistant says counts.

A line is `{"messages": [{"role": ..., "content": ...}, ...]}`. Which tokens are the assistant's
follows from the model's own chat template: those that the conversation up to and with a message has
more than the conversation before it with the prompt for an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from octavo.core.errors import UserError
from octavo.io.chat_template import render_chat
from octavo.train.data import F32, I64, Corpus

if TYPE_CHECKING:
    from octavo.io.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


def read_chats(path: Path) -> list[list[Mapping[str, Any]]]:
    """The conversations of a file. Raises UserError naming the line, or for an empty file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as UTF-8 text: {error}") from error
    chats = [_parsed(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not chats:
        raise UserError(f'{path}: holds no conversation; give lines of {{"messages": [...]}}')
    return chats


def chat_corpus(
    tokenizer: Tokenizer, train: Sequence[Messages], held_out: Sequence[Messages], context: int
) -> Corpus:
    """A window a conversation, cut and padded to `context` + 1 tokens; answers count, all else not.

    Raises UserError for a conversation in which nothing counts (no answer, or none within the
    context), for one that is in both parts, and for an empty part; TokenizerError for a model
    without a chat template.
    """
    overlap = {json.dumps(chat) for chat in train} & {json.dumps(chat) for chat in held_out}
    if overlap:
        raise UserError(
            f"{len(overlap)} held-out conversations are among the training ones: their loss would "
            "measure memory; hold out others"
        )
    tokens, weights = _windows(tokenizer, train, context, "training")
    kept, kept_weights = _windows(tokenizer, held_out, context, "held-out")
    return Corpus(tokens, kept, weights, kept_weights)


def marked(tokenizer: Tokenizer, messages: Messages) -> tuple[list[int], list[bool]]:
    """A conversation's tokens, and which of them are an assistant's answer.

    Raises UserError when the template writes earlier messages otherwise once later ones follow.
    """
    whole = render_chat(tokenizer, messages, add_generation_prompt=False)
    answer = [False] * len(whole)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render_chat(tokenizer, messages[:index], add_generation_prompt=True)
        after = render_chat(tokenizer, messages[: index + 1], add_generation_prompt=False)
        if after[: len(before)] != before or whole[: len(after)] != after:
            raise UserError(
                f"message {index + 1}: the chat template writes it otherwise when more follows, so "
                "which tokens are the answer can't be told; cut the conversation after it"
            )
        answer[len(before) : len(after)] = [True] * (len(after) - len(before))
    return whole, answer


def _windows(
    tokenizer: Tokenizer, chats: Sequence[Messages], context: int, name: str
) -> tuple[I64, F32]:
    if not chats:
        raise UserError(f"the {name} part holds no conversation; give at least one")
    rows = list(_rows(tokenizer, chats, context, name))
    return np.stack([tokens for tokens, _ in rows]), np.stack([weights for _, weights in rows])


def _rows(
    tokenizer: Tokenizer, chats: Sequence[Messages], context: int, name: str
) -> Iterator[tuple[npt.NDArray[np.int64], F32]]:
    for number, chat in enumerate(chats, 1):
        ids, answer = marked(tokenizer, chat)
        tokens = np.zeros(context + 1, np.int64)  # behind the last token that counts: never seen
        weights = np.zeros(context, np.float32)
        tokens[: len(ids)] = ids[: context + 1]
        weights[: max(0, len(ids) - 1)] = answer[1 : context + 1]
        if not weights.any():
            raise UserError(
                f"{name} conversation {number}: no answer of an assistant within {context} tokens; "
                "leave it out, or train with a longer context"
            )
        yield tokens, weights


def _parsed(path: Path, number: int, line: str) -> list[Mapping[str, Any]]:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is not JSON: {error}") from error
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise UserError(
            f'{path}: line {number} needs "messages", a list of {{"role": ..., "content": ...}}'
        )
    return messages


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value
