"""Calls and thoughts on the wire, held to the shapes that the server declares and, strictly, to the
types of the clients: whole answers, and every event of a stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import Message as ClientMessage
from anthropic.types import RawMessageStreamEvent
from openai.types.chat import ChatCompletion as ClientCompletion
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import Response as ClientResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter, ValidationError

from octavo.serve import shapes
from support.fakes import ScriptedModel
from support.serving import Served
from support.tokenizers import CHATML, byte_level_tokenizer

TEMPLATE = CHATML + "{% if tools %}{{ '<tool_call>' }}{% endif %}{% if false %}</think>{% endif %}"
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 12}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
SCRIPTS = {
    "call": CALL,
    "text and calls": f"Hm.{CALL}\n{OTHER}",
    "thought": "<think>so</think>\n\nYes.",
    "thought and call": f"<think>so</think>\n\n{CALL}",
    "thought without an end": "<think>so and so",
    "call without an end": '<tool_call>\n{"name": "f", "arguments": {"x": 12',
}
PING = '{"type":"ping"}'  # of Messages: the client's types leave it out, and the client skips it
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
USER = [{"role": "user", "content": "abc"}]
CHAT = {
    "messages": USER, "max_tokens": 150, "temperature": 0,
    "tools": [{"type": "function", "function": {"name": n, "parameters": SCHEMA}} for n in "fg"],
}  # fmt: skip
RESPONSES = {
    "input": "abc", "temperature": 0, "max_output_tokens": 150,
    "tools": [{"type": "function", "name": n, "parameters": SCHEMA, "strict": False} for n in "fg"],
}  # fmt: skip
MESSAGES = {
    "messages": USER, "max_tokens": 150, "temperature": 0, "model": "tiny",
    "tools": [{"name": n, "input_schema": SCHEMA} for n in "fg"],
}  # fmt: skip


@pytest.fixture(params=SCRIPTS)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    tokenizer = byte_level_tokenizer(**{"tokenizer.chat_template": TEMPLATE})
    said = tuple(tokenizer.encode(SCRIPTS[request.param], add_special=False))
    model = ScriptedModel(tokenizer.vocab_size, (None,), said, tokenizer.eos_ids[0])
    made = Served(tokenizer=tokenizer, model=model, context=600)  # type: ignore[arg-type]
    yield made
    made.close()


def asked(served: Served, path: str, body: dict[str, Any]) -> str:
    response = asyncio.run(served.post(path, body))
    assert response.status_code == 200, response.text
    return response.text


def streamed(served: Served, path: str, body: dict[str, Any], kind: Any) -> list[Any]:
    """The events as the client's type, each checked strictly."""
    text = asked(served, path, {**body, "stream": True})
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    adapter = TypeAdapter(kind)
    kept = [line for line in lines if line not in ("[DONE]", PING)]
    return [adapter.validate_json(line, strict=True) for line in kept]


def whole(text: str, ours: type[BaseModel], theirs: type[BaseModel]) -> Any:
    """The answer as the client's type, once it is one of both."""
    ours.model_validate_json(text)
    return theirs.model_validate_json(text, strict=True)


def test_chat(served: Served) -> None:
    """Put together, the chunks are the message of the whole answer."""
    path = "/v1/chat/completions"
    answer = whole(asked(served, path, CHAT), shapes.ChatCompletion, ClientCompletion)
    text, thought, ends = "", "", []
    calls: dict[int, list[str]] = {}
    for chunk in streamed(served, path, CHAT, ChatCompletionChunk):
        [choice] = chunk.choices
        text += choice.delta.content or ""
        thought += (choice.delta.model_extra or {}).get("reasoning_content") or ""
        ends += [choice.finish_reason] if choice.finish_reason else []
        for call in choice.delta.tool_calls or ():
            if call.id is not None:  # a call's first chunk names it
                calls[call.index] = [call.function.name, ""]
                assert call.type == "function"
            calls[call.index][1] += call.function.arguments
    [choice] = answer.choices
    message = choice.message
    assert (text, ends) == (message.content or "", [choice.finish_reason])
    assert thought == ((message.model_extra or {}).get("reasoning_content") or "")
    whole_calls = [[c.function.name, c.function.arguments] for c in message.tool_calls or ()]
    assert [calls[i] for i in range(len(calls))] == whole_calls
    assert (choice.finish_reason == "tool_calls") == bool(whole_calls)
    details = answer.usage.completion_tokens_details
    assert (details.reasoning_tokens > 0) == bool(thought)


def test_responses(served: Served) -> None:
    """The last event holds the whole answer, and each item was announced and ended before."""
    path = "/v1/responses"
    answer = whole(asked(served, path, RESPONSES), shapes.Response, ClientResponse)
    events = streamed(served, path, RESPONSES, ResponseStreamEvent)
    assert events[0].type == "response.created"
    last = events[-1].response
    assert last.status == answer.status
    assert events[-1].type == f"response.{last.status}"
    shapes.Response.model_validate_json(last.model_dump_json(exclude_unset=True))
    assert [_plain(item) for item in last.output] == [_plain(item) for item in answer.output]
    done = [e.item for e in events if e.type == "response.output_item.done"]
    assert [item.to_dict() for item in done] == [item.to_dict() for item in last.output]
    assert [e.sequence_number for e in events] == list(range(len(events)))


def _plain(item: Any) -> dict[str, Any]:
    """An item without the names that are new in every answer."""
    fields: dict[str, Any] = item.to_dict()
    return {key: value for key, value in fields.items() if key not in ("id", "call_id")}


def test_messages(served: Served) -> None:
    """The blocks of the stream, put together, are those of the whole answer."""
    path = "/v1/messages"
    answer = whole(asked(served, path, MESSAGES), shapes.Message, ClientMessage)
    blocks: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    for event in streamed(served, path, MESSAGES, RawMessageStreamEvent):
        if event.type == "content_block_start":
            assert event.index == len(blocks)
            blocks.append(event.content_block.to_dict())
        elif event.type == "content_block_delta":
            delta, block = event.delta.to_dict(), blocks[event.index]
            key = str(delta["type"]).removesuffix("_delta")
            if key == "input_json":
                inputs[event.index] = inputs.get(event.index, "") + str(delta["partial_json"])
            else:
                block[key] = block.get(key, "") + delta[key]
        elif event.type == "message_delta":
            assert event.delta.stop_reason == answer.stop_reason
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text or "{}")
    told = [block.to_dict() for block in answer.content]
    assert [{**b, "id": ""} for b in blocks] == [{**b, "id": ""} for b in told]


@pytest.mark.parametrize("damage", [{"index": "0"}, {"message": None}, {"more": 1}])
def test_the_check_sees_what_is_wrong(damage: dict[str, Any]) -> None:
    served_by = Served()
    try:
        body = json.loads(asked(served_by, "/v1/chat/completions", {**CHAT, "max_tokens": 2}))
    finally:
        served_by.close()
    body["choices"][0].update(damage)
    with pytest.raises(ValidationError):
        whole(json.dumps(body), shapes.ChatCompletion, ClientCompletion)
