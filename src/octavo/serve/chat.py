"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from octavo.core.errors import RequestError
from octavo.engine.request import Request, TokenLogprobs
from octavo.serve.answering import Answering, Piece, Pieces
from octavo.serve.errors import ApiError
from octavo.serve.prompts import Breakpoint, chat_prompt
from octavo.serve.protocol import ChatRequest
from octavo.serve.sampling import engine_request, sampling_params
from octavo.serve.served import ServedModel
from octavo.serve.wording import DONE, Tally, chat_logprobs, event, new_id

_FINISH = {"abort": "stop", "error": "stop"}


class Chat:
    """One call. Making it checks everything that can be wrong with the request."""

    def __init__(self, body: ChatRequest, model: ServedModel) -> None:
        self.body, self.model = body, model
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        self.name = model.check_name(body.model)
        tokens, marks = chat_prompt(model.tokenizer, body)
        self.request = self._request(tokens, marks)
        self.tally = Tally([len(tokens)])

    def _request(self, tokens: tuple[int, ...], marks: list[Breakpoint]) -> Request:
        body = self.body
        room = self.model.context - len(tokens)
        wanted = body.max_completion_tokens or body.max_tokens
        params = sampling_params(
            body,
            self.model,
            max_tokens=max(1, room) if wanted is None else wanted,
            logprobs=_logprobs(body),
            scored=False,
        )
        return engine_request(self.id, tokens, params, body, self.model, marks)

    @property
    def prompt_sizes(self) -> list[int]:
        return [len(self.request.prompt)]

    def start(self) -> Answering:
        """Raises what refuses the request."""
        skip = self.body.skip_special_tokens
        return Answering(self.model.client, [self.request], self.model.tokenizer, skip_special=skip)

    def failure(self, error: ApiError) -> bytes:
        return event(error.body())

    async def answer(self, answering: Pieces) -> dict[str, Any]:
        """The whole answer as JSON."""
        choices = [_Whole(i) for i in range(self.request.params.n)]
        async for pieces in answering:
            for piece in pieces:
                self.tally.add(piece)
                choices[piece.choice].add(piece)
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(choice) for choice in choices],
            "usage": self.tally.usage(),
            "prompt_cache_diagnostics": self.tally.diagnostics(),
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.name,
            "system_fingerprint": None,
            "service_tier": None,
        }

    def _choice(self, whole: _Whole) -> dict[str, Any]:
        entries = whole.logprobs if self.body.logprobs else None
        choice = {
            "index": whole.index,
            "message": {
                "role": "assistant",
                "content": "".join(whole.texts),
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None if entries is None else chat_logprobs(self.model.tokenizer, entries),
            "finish_reason": whole.finish,
            "stop_reason": whole.stop_reason,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = whole.tokens
        return choice

    async def stream(self, answering: Pieces) -> AsyncIterator[bytes]:
        """Server-sent events: a role first, then what comes, then usage if it was asked for."""
        head = self._head("chat.completion.chunk")
        options = self.body.stream_options
        if options is not None and options.include_usage:
            head["usage"] = None
        for index in range(self.request.params.n):
            delta = {"role": "assistant", "content": "", "refusal": None}
            yield event({**head, "choices": [_delta(index, delta)]})
        async for pieces in answering:
            for piece in merge(pieces):
                self.tally.add(piece)
                yield event({**head, "choices": self._deltas(piece)})
        if options is not None and options.include_usage:
            last = {"choices": [], "usage": self.tally.usage()}
            yield event({**head, **last})
        yield DONE

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        delta = {"content": piece.text} if piece.text or piece.finish is None else {}
        finish = None if piece.finish is None else _FINISH.get(piece.finish, piece.finish)
        found = _delta(piece.choice, delta, finish)
        if self.body.logprobs:
            found["logprobs"] = chat_logprobs(self.model.tokenizer, piece.logprobs)
        if piece.finish is not None:
            found["stop_reason"] = piece.stop_reason
        if self.body.return_token_ids:
            found["token_ids"] = piece.tokens
        return [found]


def _delta(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def merge(pieces: list[Piece]) -> list[Piece]:
    """Pieces of one choice that came together, joined; choices in order of their first."""
    found: dict[tuple[int, int], Piece] = {}
    for piece in pieces:
        earlier = found.get((piece.request, piece.choice))
        if earlier is None:
            found[piece.request, piece.choice] = piece
            continue
        earlier.text += piece.text
        earlier.tokens += piece.tokens
        earlier.logprobs += piece.logprobs
        earlier.prompt_logprobs += piece.prompt_logprobs
        earlier.finish, earlier.stop_reason = piece.finish, piece.stop_reason
        earlier.cache = earlier.cache or piece.cache
    return list(found.values())


class _Whole:
    """One choice, collected."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.texts: list[str] = []
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish = "stop"
        self.stop_reason: int | str | None = None

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        if piece.finish is not None:
            self.finish = _FINISH.get(piece.finish, piece.finish)
            self.stop_reason = piece.stop_reason


def _logprobs(body: ChatRequest) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        return None
    return body.top_logprobs or 0
