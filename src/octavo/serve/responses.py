"""POST /v1/responses, GET and DELETE /v1/responses/ID: OpenAI's Responses API over chat.

An input becomes a conversation; `previous_response_id` continues one that was stored. Stored
responses live in memory, the newest thousand.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from octavo.core.errors import RequestError
from octavo.serve.answering import Answering, Pieces
from octavo.serve.chat import Chat, merge
from octavo.serve.errors import ApiError
from octavo.serve.items import Items
from octavo.serve.protocol import (
    Body,
    ChatRequest,
    PromptCacheOptions,
    listed,
    message_schema,
    parts,
)
from octavo.serve.served import ServedModel
from octavo.serve.wording import new_id

_MOST_STORED = 1000
_encode = msgspec.json.Encoder().encode


_ITEM = message_schema(parts("input_text"), "system", "developer", "user", "assistant")
_Items = Annotated[list[dict[str, Any]], listed(_ITEM)]


class ResponsesRequest(Body):
    model: str | None = None
    input: str | _Items | None = None
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
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None


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


def chat_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools as chat requests have them. Raises RequestError for one that is no function."""
    found = []
    for i, tool in enumerate(tools or ()):
        if tool.get("type") != "function":
            raise RequestError(
                f"tool {i} is of type {tool.get('type')!r}; only functions are called here", "tools"
            )
        function = {key: tool[key] for key in _FUNCTION if tool.get(key) is not None}
        found.append({"type": "function", "function": function})
    return found or None


_FUNCTION = ("name", "description", "parameters", "strict")


def chat_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def chat_format(text: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`text.format` as a response_format. Raises RequestError when it is no object."""
    wanted = (text or {}).get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise RequestError("text.format must be an object", "text")
    if wanted.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": wanted.get("schema")}}
    return wanted


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
            tools=chat_tools(body.tools),
            tool_choice=chat_choice(body.tool_choice),
            parallel_tool_calls=body.parallel_tool_calls,
            response_format=chat_format(body.text),
        )
        self.chat = Chat(chat, model)
        self.id = _id("resp")
        self._created = time.time()
        self._sequence = 0

    @property
    def prompt_sizes(self) -> list[int]:
        return self.chat.prompt_sizes

    def start(self) -> Answering:
        return self.chat.start()

    async def answer(self, answering: Pieces) -> dict[str, Any]:
        reader, items = self.chat.reader(), Items()
        finish: str | None = None
        async for pieces in answering:
            for piece in pieces:
                self.chat.tally.add(piece)
                for part in reader.push(piece.text, piece.finish is not None):
                    items.add(part)
                finish = piece.finish or finish
        items.end(finish == "length")
        return self._finished(items, finish)

    def _finished(self, items: Items, finish: str | None) -> dict[str, Any]:
        cut = finish == "length"
        response = self._response("incomplete" if cut else "completed")
        response["output"] = items.finished()
        response["completed_at"] = None if cut else time.time()
        response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        response["usage"] = self._usage()
        response["prompt_cache_diagnostics"] = next(iter(self.chat.tally.diagnostics()), None)
        if self.body.store is not False:
            said = [item for item in response["output"] if item["type"] != "reasoning"]
            answer = [_message(item, i) for i, item in enumerate(said)]
            self._store.put(response, [*self._conversation, *answer])
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
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "store": body.store is not False,
            "temperature": params.temperature,
            "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [_shown(tool) for tool in body.tools or ()],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.chat.tally.usage()
        details = usage["completion_tokens_details"]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": details["reasoning_tokens"]},
            "total_tokens": usage["total_tokens"],
        }

    async def stream(self, answering: Pieces) -> AsyncIterator[bytes]:
        """Events in the order that clients rely on, numbered from 0."""
        reader, items = self.chat.reader(), Items()
        finish: str | None = None
        yield self._event("response.created", {"response": self._response("in_progress")})
        yield self._event("response.in_progress", {"response": self._response("in_progress")})
        async for pieces in answering:
            for piece in merge(pieces):
                self.chat.tally.add(piece)
                finish = piece.finish or finish
                for part in reader.push(piece.text, piece.finish is not None):
                    for kind, fields in items.add(part):
                        yield self._event(kind, fields)
        for kind, fields in items.end(finish == "length"):
            yield self._event(kind, fields)
        response = self._finished(items, finish)
        yield self._event(f"response.{response['status']}", {"response": response})

    def failure(self, error: ApiError) -> bytes:
        response = self._response("failed")
        response["error"] = {"code": error.code or "server_error", "message": str(error)}
        return self._event("response.failed", {"response": response})

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        value = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + _encode(value) + b"\n\n"


def _id(prefix: str) -> str:
    return new_id(prefix).replace("-", "_")


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"parameters": None, "strict": None, **tool}
