"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from octavo.core.errors import RequestError
from octavo.engine.request import Request, TokenLogprobs
from octavo.io.chat_template import template_literals
from octavo.serve.answering import Answering, Piece, Pieces
from octavo.serve.calls import (
    THINK,
    THOUGHT,
    AnswerReader,
    CallBegin,
    CallText,
    Part,
    Text,
    Thought,
)
from octavo.serve.errors import ApiError
from octavo.serve.formats import grammar_of
from octavo.serve.prompts import Breakpoint, chat_prompt
from octavo.serve.protocol import ChatRequest
from octavo.serve.sampling import engine_request, sampling_params
from octavo.serve.served import ServedModel
from octavo.serve.thoughts import ThoughtTokens
from octavo.serve.tools import forced_grammar, offer_of, special_marks
from octavo.serve.wording import DONE, Tally, chat_logprobs, event, new_id

_FINISH = {"abort": "stop", "error": "stop"}


class Chat:
    """One call. Making it checks everything that can be wrong with the request."""

    def __init__(self, body: ChatRequest, model: ServedModel) -> None:
        self.body, self.model = body, model
        self.id, self.created = new_id("chatcmpl"), int(time.time())
        self.name = model.check_name(body.model)
        tokens, marks = chat_prompt(model.tokenizer, body)
        self.offer = offer_of(body, model.tokenizer)
        self.request = self._request(tokens, marks)
        thoughts = ThoughtTokens(model.tokenizer, self._opened) if self._thinks else None
        self.tally = Tally([len(tokens)], thoughts)

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
        grammar = forced_grammar(self.offer, self.model.tokenizer) or grammar_of(body)
        return engine_request(self.id, tokens, params, body, self.model, marks, grammar)

    @property
    def _thinks(self) -> bool:
        return not self.request.grammar and THOUGHT in template_literals(self.model.tokenizer)

    def reader(self) -> AnswerReader:
        """What takes one choice's text apart."""
        offer, thinks = self.offer, self._thinks
        opened = thinks and self._opened
        return AnswerReader(offer.syntax, offer.names, offer.parallel, thinks, opened)

    @property
    def _opened(self) -> bool:
        """Whether the prompt ends within a thought."""
        end = self.model.tokenizer.decode(self.request.prompt[-16:], skip_special=False)
        return end.rstrip().endswith(THINK)

    @property
    def prompt_sizes(self) -> list[int]:
        return [len(self.request.prompt)]

    def start(self) -> Answering:
        """Raises what refuses the request."""
        tokenizer = self.model.tokenizer
        marks = (THINK, THOUGHT) if self._thinks else ()
        skip = self.body.skip_special_tokens and not special_marks(self.offer, tokenizer, marks)
        return Answering(self.model.client, [self.request], tokenizer, skip_special=skip)

    def failure(self, error: ApiError) -> bytes:
        return event(error.body())

    async def answer(self, answering: Pieces) -> dict[str, Any]:
        """The whole answer as JSON."""
        choices = [_Whole(i, self.reader()) for i in range(self.request.params.n)]
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
            "message": whole.message(),
            "logprobs": None if entries is None else chat_logprobs(self.model.tokenizer, entries),
            "finish_reason": finish_reason(whole.finish, whole.reader),
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
        readers = [self.reader() for _ in range(self.request.params.n)]
        async for pieces in answering:
            for piece in merge(pieces):
                self.tally.add(piece)
                for choice in self._choices(piece, readers[piece.choice]):
                    yield event({**head, "choices": [choice]})
        if options is not None and options.include_usage:
            last = {"choices": [], "usage": self.tally.usage()}
            yield event({**head, **last})
        yield DONE

    def _choices(self, piece: Piece, reader: AnswerReader) -> list[dict[str, Any]]:
        """What a piece of a choice brings, as the choices of one chunk or several."""
        deltas = _deltas(reader.push(piece.text, piece.finish is not None))
        if not deltas:
            deltas = [{"content": ""} if piece.finish is None else {}]
        found = [_delta(piece.choice, delta) for delta in deltas]
        if self.body.logprobs:
            found[0]["logprobs"] = chat_logprobs(self.model.tokenizer, piece.logprobs)
        if self.body.return_token_ids:
            found[0]["token_ids"] = piece.tokens
        if piece.finish is not None:
            finish = _FINISH.get(piece.finish, piece.finish)
            found[-1]["finish_reason"] = finish_reason(finish, reader)
            found[-1]["stop_reason"] = piece.stop_reason
        return found


def finish_reason(finish: str, reader: AnswerReader) -> str:
    return "tool_calls" if finish == "stop" and reader.called else finish


def _deltas(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Deltas in order: a call's name before its arguments, neighbours of a kind in one."""
    found: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, CallBegin):
            found.append({"tool_calls": [_call(part, "")]})
        elif isinstance(part, CallText):
            found.append(
                {"tool_calls": [{"index": part.number, "function": {"arguments": part.text}}]}
            )
        else:
            kind = "content" if isinstance(part, Text) else "reasoning_content"
            if found and kind in found[-1]:
                found[-1][kind] += part.text
            else:
                found.append({kind: part.text})
    return found


def _call(begin: CallBegin, arguments: str) -> dict[str, Any]:
    function = {"name": begin.name, "arguments": arguments}
    return {"index": begin.number, "id": begin.id, "type": "function", "function": function}


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


class Collected:
    """An answer's parts, put together."""

    def __init__(self) -> None:
        self.text = self.thought = ""
        self.calls: list[tuple[CallBegin, list[str]]] = []

    def add(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if isinstance(part, CallBegin):
                self.calls.append((part, []))
            elif isinstance(part, CallText):
                self.calls[part.number][1].append(part.text)
            elif isinstance(part, Thought):
                self.thought += part.text
            else:
                self.text += part.text


class _Whole:
    """One choice, collected."""

    def __init__(self, index: int, reader: AnswerReader) -> None:
        self.index, self.reader = index, reader
        self._collected = Collected()
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish = "stop"
        self.stop_reason: int | str | None = None

    def add(self, piece: Piece) -> None:
        self._collected.add(self.reader.push(piece.text, piece.finish is not None))
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        if piece.finish is not None:
            self.finish = _FINISH.get(piece.finish, piece.finish)
            self.stop_reason = piece.stop_reason

    def message(self) -> dict[str, Any]:
        found, text = self._collected, self._collected.text
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if found.calls and not text.strip() else text,
            "refusal": None,
            "annotations": [],
        }
        if found.thought:
            message["reasoning_content"] = found.thought
        if found.calls:
            calls = [_call(begin, "".join(texts)) for begin, texts in found.calls]
            message["tool_calls"] = [{k: v for k, v in c.items() if k != "index"} for c in calls]
        return message


def _logprobs(body: ChatRequest) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        return None
    return body.top_logprobs or 0
