"""What the answers of several endpoints share: ids, usage, log-probabilities, events."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.engine.request import CacheUse, TokenLogprobs
from octavo.io.tokenizer import Tokenizer
from octavo.serve.answering import Piece
from octavo.serve.thoughts import ThoughtTokens

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def json_bytes(value: object) -> bytes:
    return _encode(value)


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(value) + b"\n\n"


class Tally:
    """Tokens of a call, as they come. `prompts`: tokens of each prompt; `thoughts`: for answers
    that may begin with one."""

    def __init__(self, prompts: Sequence[int], thoughts: ThoughtTokens | None = None) -> None:
        self._thoughts = thoughts
        self._prompts = tuple(prompts)
        self.prompt_tokens = sum(prompts)
        self.completion_tokens = 0
        self.caches: dict[int, CacheUse] = {}

    def add(self, piece: Piece) -> None:
        self.completion_tokens += len(piece.tokens)
        if self._thoughts is not None:
            self._thoughts.add(piece)
        if piece.cache is not None:
            self.caches.setdefault(piece.request, piece.cache)

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": sum(use.read for use in self.caches.values()),
                "cache_write_tokens": sum(use.written for use in self.caches.values()),
            },
            "completion_tokens_details": {
                "reasoning_tokens": 0 if self._thoughts is None else self._thoughts.count,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def diagnostics(self) -> list[dict[str, Any]]:
        """Per prompt, what the prefix cache did and why not more, in OpenAI's terms and ours."""
        return [_diagnosis(use, self._prompts[i]) for i, use in sorted(self.caches.items())]


_DIAGNOSES = {"hit": "cache_hit", "input_changed": "cache_miss",
              "first": "comparison_response_not_found"}  # fmt: skip


def _diagnosis(use: CacheUse, prompt: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": _DIAGNOSES.get(use.reason, "unavailable"),
        "octavo_reason": use.reason,
        "cached_tokens": use.read,
    }
    if use.reason == "input_changed":
        found["reason"] = use.reason
        found["cache_missed_tokens"] = prompt - use.read
        found["comparison_reusable_tokens"] = use.read
        found["first_diverging_token"] = use.diverged
    return found


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    return {"content": [_chat_entry(tokenizer, entry) for entry in entries], "refusal": None}


def _chat_entry(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, Any]:
    top = [_token(tokenizer, token, logprob) for token, logprob in entry.top]
    return {**_token(tokenizer, entry.token, entry.logprob), "top_logprobs": top}


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    text = data.decode(errors="replace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(data)}


def finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what is impossible."""
    return max(logprob, -9999.0)


class TextLogprobs:
    """The `logprobs` object of plain completions, built token by token."""

    def __init__(self, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._tokenizer, self._offset = tokenizer, offset
        self.tokens: list[str] = []
        self.token_logprobs: list[float | None] = []
        self.top_logprobs: list[dict[str, float] | None] = []
        self.text_offset: list[int] = []

    def add(self, token: int, entry: TokenLogprobs | None) -> None:
        """`entry` is None for a prompt's first token, which nothing predicts."""
        text = self._text(token)
        self.tokens.append(text)
        self.text_offset.append(self._offset)
        self._offset += len(text)
        self.token_logprobs.append(None if entry is None else finite(entry.logprob))
        self.top_logprobs.append(None if entry is None else self._top(entry))

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, logprob in entry.top:  # best first: of tokens that read alike, the likeliest
            found.setdefault(self._text(token), finite(logprob))
        return found

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode(errors="replace")

    def as_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }

    def take(self) -> dict[str, Any]:
        """What has been added since the last call; offsets go on."""
        found = self.as_json()
        self.tokens, self.token_logprobs = [], []
        self.top_logprobs, self.text_offset = [], []
        return found
