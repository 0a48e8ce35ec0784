"""How many tokens of an answer are a thought."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.serve.answering import Piece
from octavo.serve.calls import AnswerReader, Thought
from octavo.serve.thoughts import ThoughtTokens
from octavo.serve.tools import SYNTAXES
from support.tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
CASES = {
    "<think>so</think>\n\nYes.": len("<think>so</think>"),
    " \n<think></think>": len(" \n<think></think>"),
    "<think>so and so": len("<think>so and so"),
    "<think": 0,  # it may have become one
    "Yes. <think>no</think>": 0,
    "": 0,
}


def counted(text: str, cuts: list[int], opened: bool = False) -> int:
    tokens = TOKENIZER.encode(text, add_special=False)
    thoughts = ThoughtTokens(TOKENIZER, opened)
    edges = [0, *sorted(cut % (len(tokens) + 1) for cut in cuts), len(tokens)]
    for start, stop in itertools.pairwise(edges):
        thoughts.add(Piece(0, 0, "", tuple(tokens[start:stop]), (), (), None, None, None))
    return thoughts.count


@pytest.mark.parametrize("text", CASES)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=4))
def test_a_thought_counts_up_to_its_end(text: str, cuts: list[int]) -> None:
    assert len(TOKENIZER.encode(text, add_special=False)) == len(text)  # a token is a byte
    assert counted(text, cuts) == CASES[text]


def test_a_prompt_may_have_opened_it() -> None:
    assert counted("so</think>Yes", [3], opened=True) == len("so</think>")


def test_choices_are_counted_apart_and_added_up() -> None:
    thoughts = ThoughtTokens(TOKENIZER, opened=False)
    for choice, text in enumerate(("<think>a</think>b", "none", "<think>ab</think>")):
        tokens = tuple(TOKENIZER.encode(text, add_special=False))
        thoughts.add(Piece(0, choice, "", tokens, (), (), None, None, None))
    assert thoughts.count == len("<think>a</think>") + len("<think>ab</think>")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "<thi", "<"]), max_size=7))
def test_there_is_a_count_where_the_reader_finds_a_thought(parts: list[str]) -> None:
    text = "".join(parts)
    found = AnswerReader(SYNTAXES[0], thinks=True).push(text, last=True)
    thought = "".join(part.text for part in found if isinstance(part, Thought))
    count = counted(text, [])
    assert count >= len(thought)
    assert (count > 0) == text.lstrip().startswith("<think>")
