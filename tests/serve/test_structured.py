"""Structured answers and tool calls over HTTP, by every field that clients use."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from support.fakes import FakeModel, ScriptedModel
from support.serving import Served
from support.tokenizers import CHATML, byte_level_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 10, "maximum": 99}, "ok": {"enum": ["a"]}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
HERMES = CHATML + "{# {{ '<tool_call>' }} #}{% if tools %}{{ '<tool_call>' }}{% endif %}"


def served(script: str = "", template: str = HERMES) -> Served:
    """Over a model that says `script`, or hashes."""
    tokenizer = byte_level_tokenizer(**{"tokenizer.chat_template": template})
    vocab, end = tokenizer.vocab_size, tokenizer.eos_ids[0]
    said = tuple(tokenizer.encode(script, add_special=False))
    model = ScriptedModel(vocab, (None,), said, end) if script else FakeModel(vocab)
    return Served(tokenizer=tokenizer, model=model, context=400)  # type: ignore[arg-type]


def post(server: Served, path: str = "/v1/chat/completions", **fields: object):
    body = {"max_tokens": 160, "seed": 3, **fields}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": "abc"}]
    else:
        body["prompt"] = "abc"
    try:
        return asyncio.run(server.post(path, body))
    finally:
        server.close()


def chunks(response) -> list[ChatCompletionChunk]:
    lines = [x[6:] for x in response.text.split("\n\n") if x.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [ChatCompletionChunk.model_validate_json(line) for line in lines]


def is_valid(text: str) -> bool:
    value = json.loads(text)
    return list(value) == ["n", "ok"] and 10 <= value["n"] <= 99 and value["ok"] == "a"


def shaped(text: str) -> bool:
    return bool(re.fullmatch("[0-9]{4}", text))


FIELDS = [
    ({"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "strict": True, "schema": SCHEMA}},
      "structured_outputs": None}, is_valid),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, is_valid),
    ({"json_schema": SCHEMA}, is_valid),
    ({"guided_json": SCHEMA}, is_valid),
    ({"guided_json": json.dumps(SCHEMA)}, is_valid),
    ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": ""}}, is_valid),
    ({"structured_outputs": {"regex": "[0-9]{4}"}}, shaped),
    ({"guided_regex": "[0-9]{4}"}, shaped),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
    ({"guided_choice": ["one"]}, lambda text: text == "one"),
    ({"structured_outputs": {"grammar": 'start: "x" /[0-9]/'}},
     lambda text: re.fullmatch("x[0-9]", text)),
    ({"guided_grammar": 'root ::= "x" [0-9]'}, lambda text: re.fullmatch("x[0-9]", text)),
    ({"grammar": 'root ::= "x" [0-9]'}, lambda text: re.fullmatch("x[0-9]", text)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "good"), FIELDS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_field_that_shapes_an_answer(path, fields, good):
    answer = post(served(), path, n=2, **fields).json()
    for choice in answer["choices"]:
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        assert good(text)
        assert choice["finish_reason"] == "stop"


def test_json_object_is_an_object_or_cut_off():
    [choice] = post(served(), response_format={"type": "json_object"}).json()["choices"]
    text = choice["message"]["content"]
    assert text.lstrip().startswith("{")
    assert choice["finish_reason"] == "length" or isinstance(json.loads(text), dict)


WRONG = [
    ({"response_format": {"type": "yaml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
     "response_format"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
    ({"guided_regex": "["}, "guided_regex"),
    ({"grammar": "root ::= ["}, "grammar"),
    ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice"),
    ({"guided_json": "{"}, "json_schema"),
    ({"guided_regex": "a", "min_tokens": 3}, "min_tokens"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": TOOLS * 2}, "tools"),
    ({"tools": TOOLS, "tool_choice": "some"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
     "tool_choice"),
    ({"tool_choice": "required", "tools": [{"type": "function", "function": {
        "name": "f", "parameters": {"type": "x"}}}]}, "tools"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_what_is_wrong_is_a_400_that_names_the_field(fields, param):
    response = post(served(), **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


MISTRAL = CHATML + "{% if tools %}{{ '[TOOL_CALLS]' }}{% endif %}"
LLAMA = CHATML + '{% if tools %}{{ \'{"name": x, "parameters": y}\' }}{% endif %}'


@pytest.mark.parametrize("template", [HERMES, MISTRAL, LLAMA, CHATML])
@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_is_a_call_in_the_models_own_syntax(template, seed):
    named = {"type": "function", "function": {"name": "f"}}
    response = post(served(template=template), tools=TOOLS, tool_choice=named, seed=seed)
    answer = ChatCompletion.model_validate_json(response.text, strict=True)
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    [call] = choice.message.tool_calls
    assert call.function.name == "f"
    assert is_valid(call.function.arguments)


def test_required_may_be_any_tool():
    names = set()
    for seed in range(8):
        answer = post(served(), tools=TOOLS, tool_choice="required", seed=seed,
                      parallel_tool_calls=False).json()  # fmt: skip
        [call] = answer["choices"][0]["message"]["tool_calls"]
        names.add(call["function"]["name"])
    assert names == {"f", "now"}


SAID = 'Hm.<tool_call>\n{"name": "f", "arguments": {"n": 12, "ok": "a"}}\n</tool_call>'


def test_a_free_call_is_found_whole_and_streamed():
    answer = ChatCompletion.model_validate_json(
        post(served(SAID), tools=TOOLS, temperature=0).text, strict=True
    )
    message = answer.choices[0].message
    assert message.content == "Hm."
    assert [(c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("f", '{"n": 12, "ok": "a"}')
    ]
    assert answer.choices[0].finish_reason == "tool_calls"
    found = chunks(post(served(SAID), tools=TOOLS, temperature=0, stream=True))
    deltas = [choice.delta for chunk in found for choice in chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert (calls[0].function.name, calls[0].function.arguments, calls[0].type) == (
        "f", "", "function")  # fmt: skip
    assert calls[0].id.startswith("call_")
    assert all(call.id is None and call.function.name is None for call in calls[1:])
    assert "".join(call.function.arguments for call in calls) == '{"n": 12, "ok": "a"}'
    assert "".join(delta.content or "" for delta in deltas) == "Hm."
    assert found[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}])
def test_calls_are_text_where_no_tool_is_offered(fields):
    answer = post(served(SAID), temperature=0, **fields).json()
    assert answer["choices"][0]["message"]["content"] == SAID
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_thoughts_are_kept_apart_where_the_template_knows_them():
    thinking = CHATML + "{# #}{% if false %}{{ '<think></think>' }}{% endif %}"
    server = served("<think>well</think>\n\nYes.", thinking)
    message = post(server, temperature=0).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("well", "Yes.")
    found = chunks(
        post(served("<think>well</think>\n\nYes.", thinking), temperature=0, stream=True)
    )
    thought = [c.delta.model_extra.get("reasoning_content", "") for k in found for c in k.choices]
    assert "".join(thought) == "well"
