"""What llama-bench and llama-batched-bench print, and the command lines that ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines import Task
from programs import BenchProgram, ProgramSettings, parse_batched, parse_bench

BENCH = """warning: something on the way
[
  {"build_commit": "abc1234", "n_prompt": 512, "n_gen": 0, "avg_ts": 1208.5},
  {"build_commit": "abc1234", "n_prompt": 0, "n_gen": 128, "avg_ts": 189.25}
]
"""
BATCHED = """
main: n_kv_max = 2048, n_batch = 2048, n_ubatch = 512

|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|   128 |     64 |    4 |    768 |    0.500 |   1024.0 |    0.900 |   284.40 |    1.400 |   548.57 |
|   128 |     64 |   16 |   3072 |    2.000 |   1024.0 |    2.000 |   512.25 |    4.000 |   768.00 |

"""


@pytest.mark.parametrize(
    ("task", "rate"), [(Task("prefill", 512), 1208.5), (Task("decode", 128), 189.25)]
)
def test_a_task_finds_its_row(task: Task, rate: float) -> None:
    assert parse_bench(BENCH, task)["avg_ts"] == rate


@pytest.mark.parametrize("task", [Task("prefill", 64), Task("decode", 64)])
def test_another_test_is_not_taken_for_this_one(task: Task) -> None:
    with pytest.raises(RuntimeError, match=task.name.split(" ", maxsplit=1)[0]):
        parse_bench(BENCH, task)


@pytest.mark.parametrize("text", ["", "error: no model", "[1, 2", '[{"n_gen"'])
def test_output_without_json_is_an_error(text: str) -> None:
    with pytest.raises(RuntimeError, match="no JSON"):
        parse_bench(text, Task("decode", 1))


def test_batched_rates_are_those_of_decoding() -> None:
    assert parse_batched(BATCHED) == {4: 284.4, 16: 512.25}


@pytest.mark.parametrize("text", ["", "failed to load", BATCHED.split("|   128")[0]])
def test_a_table_without_rows_is_an_error(text: str) -> None:
    with pytest.raises(RuntimeError, match="measured nothing"):
        parse_batched(text)


def fake(tmp_path: Path, name: str, output: str, status: int = 0) -> None:
    program = tmp_path / name
    (tmp_path / "output").write_text(output)
    program.write_text(f'#!/bin/sh\ncat "{tmp_path}/output"\nexit {status}\n')
    program.chmod(0o755)


def runner(tmp_path: Path, name: str = "ik_llama.cpp a") -> BenchProgram:
    return BenchProgram(name, tmp_path, tmp_path / "model.gguf", ProgramSettings(2, True, True))


def test_seconds_are_work_over_the_programs_rate(tmp_path: Path) -> None:
    fake(tmp_path, "llama-bench", BENCH)
    fake_run = runner(tmp_path)
    assert fake_run.measure(Task("decode", 128)) == pytest.approx(128 / 189.25)
    assert fake_run.facts["build"] == "abc1234"


def test_a_batch_counts_the_tokens_of_all(tmp_path: Path) -> None:
    fake(tmp_path, "llama-batched-bench", BATCHED)
    assert runner(tmp_path).measure(Task("decode", 64, batch=16)) == pytest.approx(1024 / 512.25)


def test_failure_says_which_program_and_its_last_words(tmp_path: Path) -> None:
    fake(tmp_path, "llama-bench", "no such model", status=3)
    with pytest.raises(RuntimeError, match=r"llama-bench ended with status 3: no such model"):
        runner(tmp_path).measure(Task("decode", 128))


def test_depth_is_asked_for_in_each_programs_way(tmp_path: Path) -> None:
    task = Task("decode", 64, depth=2048)
    fake(
        tmp_path,
        "llama-bench",
        '[{"n_prompt": 2048, "n_gen": 64, "avg_ts": 50, "build_commit": ""}]',
    )
    for name, words in (("ik_llama.cpp a", "-gp 2048,64"), ("llama.cpp a", "-n 64 -d 2048")):
        asked = runner(tmp_path, name)
        assert asked.measure(task) == pytest.approx(64 / 50)
        assert words in " ".join(asked.command)
