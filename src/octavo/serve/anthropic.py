"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API over the same engine.

A message list becomes a chat (system first, tool results as messages of their own), `cache_control`
becomes a mark of the prefix cache. `input_tokens` excludes what the cache had or took, as clients
of this API expect.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from pydantic import Field

from octavo.core.errors import RequestError
from octavo.serve.answering import Answering, Piece, Pieces
from octavo.serve.calls import AnswerReader, CallBegin, CallText, Part, Thought
from octavo.serve.chat import Chat, Collected, merge
from octavo.serve.errors import ApiError
from octavo.serve.prompts import chat_prompt
from octavo.serve.protocol import Body, ChatRequest, listed, message_schema, parts
from octavo.serve.served import ServedModel
from octavo.serve.wording import new_id

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
          413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}  # fmt: skip
_encode = msgspec.json.Encoder().encode


_Messages = Annotated[
    list[dict[str, Any]], listed(message_schema(parts("text"), "user", "assistant"))
]


class MessagesRequest(Body):
    model: str | None = None
    messages: _Messages
    max_tokens: Annotated[int, Field(ge=1)]
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None


class CountTokensRequest(Body):
    model: str | None = None
    messages: _Messages
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


def error_body(error: ApiError) -> dict[str, Any]:
    kind = _KINDS.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def body_for(path: str, error: ApiError) -> dict[str, Any]:
    """The error as the clients of a path read it."""
    return error_body(error) if path.startswith("/v1/messages") else error.body()


def chat_messages(
    system: str | list[dict[str, Any]] | None, messages: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The conversation as chat messages. Raises RequestError for a block that can't be read."""
    found: list[dict[str, Any]] = []
    if system:
        found.append({"role": "system", "content": system})
    for i, message in enumerate(messages):
        if message.get("role") not in ("user", "assistant", "system"):
            raise RequestError(f"message {i} has the role {message.get('role')!r}", "messages")
        content = message.get("content")
        if isinstance(content, list):
            found += _from_blocks(str(message["role"]), content, i)
        else:
            found.append({"role": message["role"], "content": content})
    return found


def _from_blocks(role: str, blocks: Sequence[Any], index: int) -> list[dict[str, Any]]:
    """A message of blocks: tool results first, each a message of its own, then text and calls."""
    results, texts, calls = [], [], []
    for block in blocks:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_result":
            results.append(_tool_result(block, index))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):  # not given back to the model
            texts.append(block)
    if not texts and not calls:
        return results
    message: dict[str, Any] = {"role": role, "content": texts}
    if calls:
        message["tool_calls"] = calls
    return [*results, message]


def _tool_result(block: Mapping[str, Any], index: int) -> dict[str, Any]:
    content = block.get("content", "")
    if not isinstance(content, str | list):
        raise RequestError(f"message {index} has a tool result that is no text", "messages")
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}


def chat_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools as chat requests have them."""
    if not tools:
        return None
    found = []
    for tool in tools:
        function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
        if tool.get("description"):
            function["description"] = tool["description"]
        found.append({"type": "function", "function": function})
    return found


_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_choice(choice: Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    """Raises RequestError for a choice of an unknown type."""
    kind = None if choice is None else choice.get("type")
    if choice is None or kind == "tool":
        name = None if choice is None else choice.get("name")
        return None if name is None else {"type": "function", "function": {"name": name}}
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise RequestError(f"tool_choice is of type {kind!r}; give auto, any, tool or none",
                           "tool_choice")  # fmt: skip
    return _CHOICES[kind]


class Messages:
    """One call, checked when it is made."""

    def __init__(self, body: MessagesRequest, model: ServedModel) -> None:
        user = (body.metadata or {}).get("user_id")
        chat = ChatRequest(
            model=body.model,
            messages=chat_messages(body.system, body.messages),
            max_tokens=body.max_tokens,
            stop=body.stop_sequences,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            user=user if isinstance(user, str) else None,
            tools=chat_tools(body.tools),
            tool_choice=chat_choice(body.tool_choice),
            parallel_tool_calls=not (body.tool_choice or {}).get("disable_parallel_tool_use"),
        )
        self.chat = Chat(chat, model)
        self.id = new_id("msg").replace("-", "_")

    @property
    def prompt_sizes(self) -> list[int]:
        return self.chat.prompt_sizes

    def start(self) -> Answering:
        return self.chat.start()

    async def answer(self, answering: Pieces) -> dict[str, Any]:
        reader, found = self.chat.reader(), Collected()
        last: Piece | None = None
        async for pieces in answering:
            for piece in pieces:
                self.chat.tally.add(piece)
                found.add(reader.push(piece.text, piece.finish is not None))
                last = piece
        return {**self._head(_content(found)), **_stop(last, reader), "usage": self._usage()}

    def _head(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.chat.name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.chat.tally.usage()
        details = usage["prompt_tokens_details"]
        read, written = details["cached_tokens"], details["cache_write_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - read - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "output_tokens": usage["completion_tokens"],
        }

    async def stream(self, answering: Pieces) -> AsyncIterator[bytes]:
        reader, blocks = self.chat.reader(), _Blocks()
        began, last = False, None
        async for pieces in answering:
            for piece in merge(pieces):
                self.chat.tally.add(piece)
                if not began:
                    began = True
                    yield self._begin()
                for part in reader.push(piece.text, piece.finish is not None):
                    for event in blocks.add(part):
                        yield event
                last = piece
        for event in blocks.end():
            yield event
        yield _event("message_delta", {"delta": _stop(last, reader), "usage": self._usage()})
        yield _event("message_stop", {})

    def failure(self, error: ApiError) -> bytes:
        return _event("error", error_body(error))

    def _begin(self) -> bytes:
        message = {**self._head([]), "usage": {**self._usage(), "output_tokens": 1}}
        return _event("message_start", {"message": message}) + _event("ping", {})


def _content(found: Collected) -> list[dict[str, Any]]:
    """Content blocks of a whole answer, as its stream has them; a lone empty text where there is
    nothing."""
    blocks: list[dict[str, Any]] = []
    if found.thought:
        blocks.append({"type": "thinking", "thinking": found.thought, "signature": ""})
    alone = not found.calls and bool(found.text or not found.thought)
    if found.text.strip() or alone:
        blocks.append({"type": "text", "text": found.text})
    for begin, texts in found.calls:
        blocks.append({**_tool_use(begin), "input": _input("".join(texts))})
    return blocks


def _tool_use(begin: CallBegin) -> dict[str, Any]:
    id_ = begin.id.replace("call_", "toolu_")
    return {"type": "tool_use", "id": id_, "name": begin.name, "input": {}}


def _input(arguments: str) -> Any:
    """A call's arguments; an object that was cut off is none."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


class _Blocks:
    """The events of content blocks: one is open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._kind = self._space = ""  # space: nothing but, shown once a text follows

    def add(self, part: Part) -> Iterator[bytes]:
        if isinstance(part, CallBegin):
            yield from self._open("tool_use", _tool_use(part))
        elif isinstance(part, CallText):
            yield self._delta({"type": "input_json_delta", "partial_json": part.text})
        elif isinstance(part, Thought):
            if self._kind != "thinking":
                block = {"type": "thinking", "thinking": "", "signature": ""}
                yield from self._open("thinking", block)
            yield self._delta({"type": "thinking_delta", "thinking": part.text})
        elif self._kind == "text" or part.text.strip():
            yield from self._write(part.text)
        else:
            self._space += part.text

    def _write(self, text: str) -> Iterator[bytes]:
        if self._kind != "text":
            yield from self._open("text", {"type": "text", "text": ""})
        text, self._space = self._space + text, ""
        if text:
            yield self._delta({"type": "text_delta", "text": text})

    def end(self) -> Iterator[bytes]:
        if self._kind != "tool_use" and (self._index < 0 or self._space):
            yield from self._write("")
        yield from self._close()

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self._index += 1
        self._kind = kind
        yield _event("content_block_start", {"index": self._index, "content_block": block})

    def _close(self) -> Iterator[bytes]:
        if self._kind:
            self._kind = ""
            yield _event("content_block_stop", {"index": self._index})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **fields}) + b"\n\n"


def _stop(piece: Piece | None, reader: AnswerReader) -> dict[str, Any]:
    reason = None if piece is None else piece.stop_reason
    if piece is not None and piece.finish == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if reader.called:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": reason}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def count_tokens(body: CountTokensRequest, model: ServedModel) -> dict[str, Any]:
    model.check_name(body.model)
    messages = chat_messages(body.system, body.messages)
    chat = ChatRequest(messages=messages, tools=chat_tools(body.tools))
    return {"input_tokens": len(chat_prompt(model.tokenizer, chat)[0])}
