"""HumanEval: programs are put together as its own code does, and completions are judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo import LLM
from octavo.backends.base import RuntimeConfig
from octavo.core.errors import ModelFileError
from octavo.harness.human_eval import (
    Attempt,
    Problem,
    attempts,
    difference,
    pass_at_1,
    read_problems,
)
from octavo.harness.sandbox import can_confine, run
from support.served_process import tiny_chat_gguf

ADD = Problem(
    "T/0", "def add(a, b):\n", "add", "def check(candidate):\n    assert candidate(2, 3) == 5\n"
)


def line(problem: Problem) -> str:
    names = {"task_id": problem.name, "prompt": problem.prompt, "entry_point": problem.entry_point}
    return json.dumps({**names, "test": problem.test, "canonical_solution": ""}) + "\n"


def test_problems_are_read() -> None:
    assert read_problems((line(ADD) * 2).encode()) == (ADD, ADD)


@pytest.mark.parametrize("bad", ["{}", "[1]", "x", '{"task_id": 1}'])
def test_a_line_that_is_no_problem_is_named(bad: str) -> None:
    with pytest.raises(ModelFileError, match="line 2"):
        read_problems(f"{line(ADD)}{bad}\n".encode())


@pytest.mark.skipif(not can_confine(), reason="no Landlock or user namespaces here")
def test_right_and_wrong_completions() -> None:
    assert run(ADD.program("    return a + b\n")) == "passed"
    assert run(ADD.program("    return a - b\n")) == "failed"


@pytest.mark.skipif(not can_confine(), reason="no Landlock or user namespaces here")
def test_a_model_without_a_clue_passes_nothing(tmp_path: Path) -> None:
    path = tiny_chat_gguf(tmp_path / "tiny.gguf")
    with LLM(str(path), config=RuntimeConfig(context=128, threads=1)) as llm:
        [found] = attempts(llm, [ADD], max_tokens=8)
    assert found.outcome == "failed"
    assert pass_at_1([found, Attempt("T/1", "", "passed")]).value == 0.5


@pytest.mark.skipif(not can_confine(), reason="no Landlock or user namespaces here")
def test_completions_made_together_are_those_made_alone(tmp_path: Path) -> None:
    path = tiny_chat_gguf(tmp_path / "tiny.gguf")
    other = Problem("T/1", "def subtract(a, b):\n", "subtract", ADD.test)
    with LLM(str(path), config=RuntimeConfig(context=128, threads=1, max_seqs=2)) as llm:
        together = list(attempts(llm, [ADD, other, ADD], max_tokens=8))
        alone = [*attempts(llm, [ADD], max_tokens=8), *attempts(llm, [other], max_tokens=8)]
    assert together == [*alone, alone[0]]


def test_differences_are_paired_by_problem() -> None:
    def side(*passed: bool) -> list[Attempt]:
        return [Attempt(f"T/{n}", "", "passed" if p else "failed") for n, p in enumerate(passed)]

    same = difference(side(True, False), side(True, False))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    worse = difference(side(*[False] * 8, *[True] * 8), side(*[True] * 16))
    assert worse.value == -0.5
    assert -1 < worse.low < -0.5 < worse.high < 0
    with pytest.raises(ValueError, match="same problems"):
        difference(side(True), side(True, True))
