"""Tool calls and structured answers through the clients that people really use."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from pydantic import BaseModel

from support.clients import with_anthropic, with_openai
from support.fakes import ScriptedModel
from support.serving import Served
from support.tokenizers import CHATML, byte_level_tokenizer

TEMPLATE = CHATML + "{% if tools %}{{ '<tool_call>' }}{% endif %}{% if false %}</think>{% endif %}"
GREEDY = {"temperature": 0}
CHAT = [{"role": "user", "content": "abc"}]
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
CALLS = (
    'Hm.<tool_call>\n{"name": "f", "arguments": {"x": 12}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
)
THOUGHT = "<think>so</think>\n\nYes."


@contextmanager
def serving(script: str):
    tokenizer = byte_level_tokenizer(**{"tokenizer.chat_template": TEMPLATE})
    said = tuple(tokenizer.encode(script, add_special=False))
    model = ScriptedModel(tokenizer.vocab_size, (None,), said, tokenizer.eos_ids[0])
    server = Served(tokenizer=tokenizer, model=model, context=600)  # type: ignore[arg-type]
    with server.listening() as url:
        yield url
    server.close()


def chat_tools():
    return [{"type": "function", "function": {"name": n, "parameters": SCHEMA}} for n in "fg"]


FOUND = [("f", {"x": 12}), ("g", {})]


def test_openai_chat_calls_streamed_and_whole():
    async def work(client):
        whole = await client.chat.completions.create(
            model="tiny", messages=CHAT, tools=chat_tools(), max_tokens=200, **GREEDY
        )
        async with client.chat.completions.stream(
            model="tiny", messages=CHAT, tools=chat_tools(), max_tokens=200, temperature=0
        ) as stream:
            async for _ in stream:
                pass
            return whole, await stream.get_final_completion()

    with serving(CALLS) as url:
        answers = with_openai(url, work)
    for answer in answers:
        [choice] = answer.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Hm.")
        calls = [(c.function.name, json.loads(c.function.arguments))
                 for c in choice.message.tool_calls]  # fmt: skip
        assert calls == FOUND


def test_a_call_and_its_result_go_back():
    async def work(client):
        first = await client.chat.completions.create(
            model="tiny", messages=CHAT, tools=chat_tools(), max_tokens=200, **GREEDY
        )
        said = first.choices[0].message
        results = [{"role": "tool", "tool_call_id": c.id, "content": "5"} for c in said.tool_calls]
        return await client.chat.completions.create(
            model="tiny", tools=chat_tools(), max_tokens=9,
            messages=[*CHAT, said.model_dump(exclude_none=True), *results])  # fmt: skip

    with serving(CALLS) as url:
        assert with_openai(url, work).usage.completion_tokens == 9


class Point(BaseModel):
    x: int
    name: str


def test_openai_parses_a_model_of_its_own():
    """`parse` sends a strict JSON schema; the answer is held to it whatever the model says."""

    async def work(client):
        return await client.chat.completions.parse(
            model="tiny", messages=CHAT, response_format=Point, max_tokens=200, temperature=0,
            logit_bias={})  # fmt: skip

    with serving('{"x": 7, "name": "abc"}') as url:
        assert with_openai(url, work).choices[0].message.parsed == Point(x=7, name="abc")


def test_openai_responses_calls_streamed_and_whole():
    tools = [{"type": "function", "name": n, "parameters": SCHEMA, "strict": False} for n in "fg"]
    ask = {"model": "tiny", "input": "abc", "tools": tools, "temperature": 0}

    async def work(client):
        whole = await client.responses.create(**ask)
        events = [event async for event in await client.responses.create(**ask, stream=True)]
        result = [{"type": "function_call_output", "call_id": item.call_id, "output": "5"}
                  for item in whole.output if item.type == "function_call"]  # fmt: skip
        more = await client.responses.create(
            model="tiny", input=result, previous_response_id=whole.id
        )
        return whole, events, more

    with serving(CALLS) as url:
        whole, events, more = with_openai(url, work)
    assert events[-1].type == "response.completed"
    for response in (whole, events[-1].response):
        message, *calls = response.output
        assert message.content[0].text == "Hm."
        assert [(c.name, json.loads(c.arguments)) for c in calls] == FOUND
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds.count("output_item.added") == kinds.count("output_item.done") == 3
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    deltas = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(e.delta for e in deltas) == "".join(e.arguments for e in done)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert more.usage.input_tokens > whole.usage.input_tokens


def test_openai_responses_text_format():
    async def work(client):
        return await client.responses.parse(model="tiny", input="abc", text_format=Point,
                                            temperature=0)  # fmt: skip

    with serving('{"x": 7, "name": "abc"}') as url:
        assert with_openai(url, work).output_parsed == Point(x=7, name="abc")


def test_openai_responses_reasoning():
    async def work(client):
        whole = await client.responses.create(model="tiny", input="abc", temperature=0)
        stream = await client.responses.create(model="tiny", input="a", temperature=0, stream=True)
        return whole, [event async for event in stream]

    with serving(THOUGHT) as url:
        whole, events = with_openai(url, work)
    thought, message = whole.output
    assert (thought.content[0].text, message.content[0].text) == ("so", "Yes.")
    deltas = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == "so"


def anthropic_tools():
    return [{"name": name, "input_schema": SCHEMA} for name in "fg"]


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_tool_use(stream):
    ask = {"model": "tiny", "max_tokens": 200, "messages": CHAT, "tools": anthropic_tools(),
           "extra_body": {"temperature": 0}}  # fmt: skip

    async def work(client):
        if not stream:
            return await client.messages.create(**ask)
        async with client.messages.stream(**ask) as events:
            async for _ in events:
                pass
            return await events.get_final_message()

    with serving(CALLS) as url:
        message = with_anthropic(url, work)
    text, *calls = message.content
    assert (message.stop_reason, text.text) == ("tool_use", "Hm.")
    assert [(call.name, call.input) for call in calls] == FOUND
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize(
    ("choice", "names"),
    [({"type": "any", "disable_parallel_tool_use": True}, {"f", "g"}),
     ({"type": "tool", "name": "g"}, {"g"})],
)  # fmt: skip
def test_anthropic_forced_tools(choice, names):
    async def work(client):
        return await client.messages.create(
            model="tiny", max_tokens=60, messages=CHAT, tools=anthropic_tools(), tool_choice=choice,
            extra_body={"temperature": 0})  # fmt: skip

    with serving('<tool_call>\n{"name": "g", "arguments": {"x": 3}}\n</tool_call>') as url:
        [call] = with_anthropic(url, work).content
    assert call.name in names
    assert call.input == {"x": 3}


def test_anthropic_thinking():
    async def work(client):
        ask = {"model": "tiny", "max_tokens": 60, "messages": CHAT,
               "extra_body": {"temperature": 0}}  # fmt: skip
        async with client.messages.stream(**ask) as events:
            async for _ in events:
                pass
            return await client.messages.create(**ask), await events.get_final_message()

    with serving(THOUGHT) as url:
        for message in with_anthropic(url, work):
            thought, text = message.content
            assert (thought.thinking, text.text) == ("so", "Yes.")
