"""`octavo bench` over a fake model."""

from __future__ import annotations

import json
import re

import pytest

import octavo.api
from octavo.cli.bench import parameters
from octavo.cli.main import main
from octavo.evals import throughput
from octavo.evals.bandwidth import Bandwidth
from octavo.evals.throughput import Instruments
from support.cli_models import FakeLLM
from support.fakes import tiny_spec

WORDS = ["bench", "tiny", "-p", "8", "-n", "3", "-r", "2"]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    fake = FakeLLM()
    monkeypatch.setattr(octavo.api, "LLM", fake)
    made_up = Instruments(Probes([3e9] * 9), lambda _: {"int8": 1e12})
    monkeypatch.setattr(throughput, "Instruments", lambda: made_up)
    return fake


class Probes:
    """Bandwidth probes that give these rates, one a call."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates

    def __call__(self, size: int, threads: int) -> Bandwidth:
        return Bandwidth(self.rates.pop(0), size, threads, "made up")


def test_table_has_llama_benchs_shape(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "-t", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert header == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert re.fullmatch(r"\|-+\|-+:\|-+:\|-+\|-+:\|-+:\|-+:\|", lines[1])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:4]]
    assert [row[5] for row in cells] == ["pp8", "tg3"]
    assert all(re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", row[6]) for row in cells)
    assert cells[0][:2] == ["tiny int4_g32", "4.88 KiB"]
    assert re.fullmatch(r"pp8: (memory|compute)-bound, \d+% of .*", lines[5])
    assert lines[6].startswith("tg3: memory-bound, ")
    assert lines[7].startswith("limits in the same run, 2 threads: 3.0 GB/s")
    assert lines[8] == "layers: linear_a8_w4_fake, int4_g32, activations a8_g32"
    assert lines[9].endswith("(FALLBACK: no fast kernel here)")
    assert "NOT STEADY" not in "".join(lines)
    assert (llm.config.threads, llm.config.context) == (2, 8)


def test_json_has_every_sample(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "-d", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [test["test"] for test in result["tests"]] == ["pp8 @ d5", "tg3 @ d5"]
    assert all(len(test["samples"]) == 2 for test in result["tests"])
    assert len(result["bandwidth"]) == 2
    assert all(test["share"] > 0 for test in result["tests"])
    assert result["tests"][1]["bound"] == "memory"
    assert (result["steady"], result["attempts"]) == (True, 1)
    assert result["receipt"]["bytes_per_token"] == 1000
    assert llm.config.context == 13


def test_an_unsteady_machine_is_named(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del llm
    made_up = Instruments(Probes([3e9, 1e9] * 3), lambda _: {"int8": 1e12})
    monkeypatch.setattr(throughput, "Instruments", lambda: made_up)
    assert main(WORDS) == 0
    assert "NOT STEADY: the memory probes of the steadiest of 3 runs" in capsys.readouterr().out


@pytest.mark.usefixtures("llm")
def test_lossy_format_says_so_on_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--format", "int4_g32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("requantized, quality not measured (int4_g32, int8_g32;")
    assert lines[2].startswith("| model")


@pytest.mark.usefixtures("llm")
def test_stages_of_a_backend_without_them_is_a_clear_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*WORDS, "--stages"]) == 2
    assert "leave out --stages" in capsys.readouterr().err


@pytest.mark.usefixtures("llm")
def test_nothing_to_measure_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tiny", "-p", "0", "-n", "0"]) == 2
    assert "-p or -n" in capsys.readouterr().err


def test_model_column_is_short(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    del llm
    words = ["bench", "/some/where/small.gguf", *WORDS[2:]]
    assert main(words) == 0
    assert "| small int4_g32 |" in capsys.readouterr().out


def test_parameters_count_a_tied_embedding_once() -> None:
    # vocab 10 x 2, one layer: q k v o of 2 x 2, gate up down of 2 x 2, three norms of 2
    assert parameters(tiny_spec(10)) == 20 + 4 * 4 + 3 * 4 + 3 * 2


def test_overhead_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--overhead", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["sequences"] for one in found] == [1, 8, 32]
    assert all(0 < one["best"] <= one["median"] for one in found)


@pytest.mark.parametrize("words", [[], ["model", "--overhead"]])
def test_either_a_model_or_the_overhead(words: list[str]) -> None:
    assert main(["bench", *words]) == 2
