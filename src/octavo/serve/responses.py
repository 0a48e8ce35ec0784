"""POST /v1/responses, GET and DELETE /v1/responses/ID: OpenAI's Responses API over chat.

An input becomes a conversation; `previous_response_id` continues one that was stored. Stored
responses live in memory, the newest thousand.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from octavo.core.errors import RequestError
from octavo.serve.answering import Answering, Piece, Pieces
from octavo.serve.chat import Chat, merge
from octavo.serve.errors import ApiError
from octavo.serve.protocol import Body, ChatRequest, PromptCacheOptions
from octavo.serve.served import ServedModel
from octavo.serve.wording import new_id

_MOST_STORED = 1000
_encode = msgspec.json.Encoder().encode


class ResponsesRequest(Body):
    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    store: bool | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    truncation: str | None = None
    background: bool | None = None


class ResponseStore:
    """Finished responses and the conversations that led to them, the newest ones."""

    def __init__(self, most: int = _MOST_STORED) -> None:
        self._most = most
        self._found: OrderedDict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = OrderedDict()

    def put(self, response: dict[str, Any], conversation: list[dict[str, Any]]) -> None:
        self._found[response["id"]] = response, conversation
        if len(self._found) > self._most:
            self._found.popitem(last=False)

    def response(self, id_: str) -> dict[str, Any]:
        """Raises ApiError 404."""
        return self._get(id_)[0]

    def conversation(self, id_: str) -> list[dict[str, Any]]:
        """Raises ApiError 404."""
        return self._get(id_)[1]

    def _get(self, id_: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        if id_ not in self._found:
            raise ApiError(404, f"there is no response {id_!r}; it was never stored, or is gone",
                           param="response_id", code="not_found")  # fmt: skip
        return self._found[id_]

    def delete(self, id_: str) -> dict[str, Any]:
        self._get(id_)
        del self._found[id_]
        return {"id": id_, "object": "response", "deleted": True}


def input_messages(given: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The input as chat messages. Raises RequestError for an item that can't be read."""
    if given is None or given in ("", []):
        raise RequestError("input is empty; give a text or messages", "input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [_message(item, i) for i, item in enumerate(given)]


def _message(item: Mapping[str, Any], index: int) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        output = item.get("output", "")
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
    if kind != "message" or "role" not in item:
        raise RequestError(f"input item {index} is of type {kind!r}; give messages", "input")
    return {"role": item["role"], "content": item.get("content")}


class Responses:
    """One call, checked when it is made."""

    def __init__(self, body: ResponsesRequest, model: ServedModel, store: ResponseStore) -> None:
        if body.background:
            raise RequestError("background is not supported; wait for the answer", "background")
        self.body, self._store = body, store
        earlier = body.previous_response_id
        history = [] if earlier is None else store.conversation(earlier)
        self._conversation = [*history, *input_messages(body.input)]
        system = [{"role": "system", "content": body.instructions}] if body.instructions else []
        chat = ChatRequest(
            model=body.model,
            messages=[*system, *self._conversation],
            max_completion_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            user=body.user or body.safety_identifier,
            prompt_cache_key=body.prompt_cache_key,
            prompt_cache_options=body.prompt_cache_options,
        )
        self.chat = Chat(chat, model)
        self.id, self._message_id = _id("resp"), _id("msg")
        self._created = time.time()
        self._sequence = 0

    @property
    def prompt_sizes(self) -> list[int]:
        return self.chat.prompt_sizes

    def start(self) -> Answering:
        return self.chat.start()

    async def answer(self, answering: Pieces) -> dict[str, Any]:
        texts: list[str] = []
        finish: str | None = None
        async for pieces in answering:
            for piece in pieces:
                self.chat.tally.add(piece)
                texts.append(piece.text)
                finish = piece.finish or finish
        return self._finished("".join(texts), finish)

    def _finished(self, text: str, finish: str | None) -> dict[str, Any]:
        cut = finish == "length"
        response = self._response("incomplete" if cut else "completed")
        response["output"] = [self._item(text, "incomplete" if cut else "completed")]
        response["completed_at"] = None if cut else time.time()
        response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        response["usage"] = self._usage()
        response["prompt_cache_diagnostics"] = next(iter(self.chat.tally.diagnostics()), None)
        if self.body.store is not False:
            answer = {"role": "assistant", "content": text}
            self._store.put(response, [*self._conversation, answer])
        return response

    def _response(self, status: str) -> dict[str, Any]:
        body, params = self.body, self.chat.request.params
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.chat.name,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "store": body.store is not False,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    def _item(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if status == "in_progress" else [_part(text)],
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.chat.tally.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }

    async def stream(self, answering: Pieces) -> AsyncIterator[bytes]:
        """Events in the order that clients rely on, numbered from 0."""
        texts: list[str] = []
        finish: str | None = None
        place = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        yield self._event("response.created", {"response": self._response("in_progress")})
        yield self._event("response.in_progress", {"response": self._response("in_progress")})
        item = self._item("", "in_progress")
        yield self._event("response.output_item.added", {"output_index": 0, "item": item})
        yield self._event("response.content_part.added", {**place, "part": _part("")})
        async for pieces in answering:
            for piece in merge(pieces):
                self.chat.tally.add(piece)
                finish = piece.finish or finish
                if piece.text:
                    texts.append(piece.text)
                    yield self._delta(place, piece)
        for event in self._end(place, "".join(texts), finish):
            yield event

    def failure(self, error: ApiError) -> bytes:
        response = self._response("failed")
        response["error"] = {"code": error.code or "server_error", "message": str(error)}
        return self._event("response.failed", {"response": response})

    def _delta(self, place: dict[str, Any], piece: Piece) -> bytes:
        fields = {**place, "delta": piece.text, "logprobs": []}
        return self._event("response.output_text.delta", fields)

    def _end(self, place: dict[str, Any], text: str, finish: str | None) -> list[bytes]:
        response = self._finished(text, finish)
        item = response["output"][0]
        return [
            self._event("response.output_text.done", {**place, "text": text, "logprobs": []}),
            self._event("response.content_part.done", {**place, "part": _part(text)}),
            self._event("response.output_item.done", {"output_index": 0, "item": item}),
            self._event(f"response.{response['status']}", {"response": response}),
        ]

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        value = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + _encode(value) + b"\n\n"


def _id(prefix: str) -> str:
    return new_id(prefix).replace("-", "_")


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
