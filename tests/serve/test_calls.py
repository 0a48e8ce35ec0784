"""Answers taken apart: every split of the text gives the same parts, and text stays text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.serve.calls import AnswerReader, CallBegin, CallText, Text, Thought
from octavo.serve.tools import SYNTAXES

HERMES, MISTRAL, LLAMA, PLAIN = SYNTAXES
NAMES = frozenset({"f", "get_weather"})
ONE = '{"name": "f", "arguments": {"x": "}\\"{", "y": [1, {}]}}'
TWO = '{"name": "get_weather", "arguments": {}}'


def read(reader: AnswerReader, pieces: list[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """Text, thought, calls."""
    text, thought, calls, ids = "", "", [], set()
    for i, piece in enumerate(pieces):
        for part in reader.push(piece, i == len(pieces) - 1):
            if isinstance(part, CallBegin):
                assert part.number == len(calls)
                ids.add(part.id)
                calls.append((part.name, ""))
            elif isinstance(part, CallText):
                name, earlier = calls[part.number]
                calls[part.number] = name, earlier + part.text
            elif isinstance(part, Thought):
                thought += part.text
            else:
                text += part.text
    assert len(ids) == len(calls)
    assert reader.called == bool(calls)
    return text, thought, calls


F_CALL = ("f", '{"x": "}\\"{", "y": [1, {}]}')
W_CALL = ("get_weather", "{}")
CASES = [
    (HERMES, f"<tool_call>\n{ONE}\n</tool_call>", "", [F_CALL]),
    (HERMES, f"Wait.<tool_call>{ONE}</tool_call>\n<tool_call>\n{TWO}\n</tool_call>\n", "Wait.",
     [F_CALL, W_CALL]),
    (HERMES, f"<tool_call>\n{ONE}", "", [F_CALL]),
    (HERMES, '<tool_call>\n{"arguments": {"a": 1}, "name": "f"}\n</tool_call>', "",
     [("f", '{"a": 1}')]),
    (HERMES, '<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call>', "",
     [("f", '{"a": 1}')]),
    (MISTRAL, f"[TOOL_CALLS][{ONE}, {TWO}]", "", [F_CALL, W_CALL]),
    (MISTRAL, f"[TOOL_CALLS] [{TWO}]", "", [W_CALL]),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    (PLAIN, ONE, "", [F_CALL]),
]  # fmt: skip
NO_CALLS = [
    (HERMES, "Use <tool_call> to call, <tool_ and <"),
    (HERMES, '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'),
    (HERMES, '<tool_call>\n{"name": "f"'),
    (HERMES, "<tool_call>\nnot json</tool_call> end"),
    (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    (HERMES, ONE),
    (MISTRAL, "[TOOL_CALLS] of what?"),
    (MISTRAL, "[1, 2]"),
    (LLAMA, '{"name": "Bob", "age": 3}'),
    (LLAMA, '{"a": {"b": 1}} and more'),
    (PLAIN, f"call {ONE}"),
    (PLAIN, "<|pyth"),
    (PLAIN, "{"),
]


def splits(text: str) -> st.SearchStrategy[list[str]]:
    cuts = st.sets(st.integers(0, len(text)), max_size=12).map(sorted)
    return cuts.map(lambda at: [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])


@given(st.data(), st.sampled_from(CASES))
def test_calls_are_found_however_the_text_is_cut(data, case):
    syntax, text, plain, calls = case
    found = read(AnswerReader(syntax, NAMES), data.draw(splits(text)))
    assert found == (plain, "", calls)


@given(st.data(), st.sampled_from(NO_CALLS))
def test_what_only_looks_like_a_call_stays_text(data, case):
    syntax, text = case
    assert read(AnswerReader(syntax, NAMES), data.draw(splits(text))) == (text, "", [])


@given(st.data(), st.sampled_from([s for s, _ in NO_CALLS] + [c[0] for c in CASES]),
       st.lists(st.sampled_from(["<tool_call>", "\n", "{", "}", '"', "[TOOL_CALLS]", "[", "]", ",",
                                 '{"name": "f", "arguments": ', ONE, "</tool_call>", "x", "<"]),
                max_size=12).map("".join))  # fmt: skip
def test_nothing_breaks_it_and_cuts_do_not_matter(data, syntax, text):
    whole = read(AnswerReader(syntax, NAMES), [text])
    assert read(AnswerReader(syntax, NAMES), data.draw(splits(text))) == whole


def test_without_tools_all_is_text():
    assert read(AnswerReader(HERMES), [CASES[0][1]]) == (CASES[0][1], "", [])


def test_only_one_call_where_only_one_is_wanted():
    text = f"<tool_call>{ONE}</tool_call><tool_call>{TWO}</tool_call>"
    assert read(AnswerReader(HERMES, NAMES, parallel=False), [text]) == ("", "", [F_CALL])


def test_arguments_are_passed_on_as_they_come():
    reader = AnswerReader(HERMES, NAMES)
    assert reader.push('<tool_call>{"name": "f", "arg') == []
    [begin, more] = reader.push('uments": {"x"')
    assert (begin.name, more.text) == ("f", '{"x"')
    assert [part.text for part in reader.push(": 1")] == [": 1"]
    assert [part.text for part in reader.push("}}\n</tool_call>", True)] == ["}"]


@given(st.data())
@pytest.mark.parametrize("opened", [False, True])
def test_thoughts_come_first(opened, data):
    text = ("" if opened else "<think>") + "I </thin think.</think>\n\nYes <think>."
    reader = AnswerReader(HERMES, NAMES, thinks=True, thinking=opened)
    assert read(reader, data.draw(splits(text))) == ("Yes <think>.", "I </thin think.", [])


@given(st.data(), st.sampled_from(["plain <think>", "<thi", " no", "<think", ""]))
def test_no_thought_is_text(data, text):
    reader = AnswerReader(HERMES, frozenset(), thinks=True)
    assert read(reader, data.draw(splits(text))) == (text, "", [])


def test_a_call_after_a_thought():
    reader = AnswerReader(HERMES, NAMES, thinks=True)
    text = f"<think>hm</think>\n\n<tool_call>\n{TWO}\n</tool_call>"
    assert read(reader, list(text)) == ("", "hm", [W_CALL])
    assert json.loads(W_CALL[1]) == {}


def test_parts_have_text():
    assert AnswerReader(HERMES, NAMES).push("") == []
    assert AnswerReader(HERMES).push("a") == [Text("a")]
