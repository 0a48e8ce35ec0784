"""`octavo bench` over a fake model."""

from __future__ import annotations

import json
import re

import pytest

import octavo.api
from octavo.cli.bench import decode_share, parameters
from octavo.cli.main import main
from octavo.evals.bandwidth import Bandwidth
from octavo.evals.throughput import BenchResult, Speed
from support.cli_models import FakeLLM
from support.fakes import tiny_spec

WORDS = ["bench", "tiny", "-p", "8", "-n", "3", "-r", "2"]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    fake = FakeLLM()
    monkeypatch.setattr(octavo.api, "LLM", fake)
    return fake


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
    assert "in the same run" in lines[-1]
    assert (llm.config.threads, llm.config.context) == (2, 8)


def test_json_has_every_sample(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "-d", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [test["test"] for test in result["tests"]] == ["pp8 @ d5", "tg3 @ d5"]
    assert all(len(test["samples"]) == 2 for test in result["tests"])
    assert len(result["bandwidth"]) == 2
    assert result["bandwidth_share"] > 0
    assert result["receipt"]["bytes_per_token"] == 1000
    assert llm.config.context == 13


@pytest.mark.usefixtures("llm")
def test_without_decoding_there_is_no_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tiny", "-p", "8", "-n", "0", "-r", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bandwidth_share"] is None


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


def test_share_is_bytes_times_rate_over_the_probes_median() -> None:
    receipt = FakeLLM()("m", format="source", config=FakeLLM().config).receipt()
    speeds = (Speed("pp8", (9.0,)), Speed("tg3", (100.0, 300.0, 200.0)))
    probes = tuple(Bandwidth(rate, 1000, 2, "made up") for rate in (1e6, 4e5, 9e9))
    assert decode_share(receipt, BenchResult(speeds, probes)) == (2e5, 1e6, 0.2)


def test_model_column_is_short(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    del llm
    words = ["bench", "/some/where/small.gguf", *WORDS[2:]]
    assert main(words) == 0
    assert "| small int4_g32 |" in capsys.readouterr().out


def test_parameters_count_a_tied_embedding_once() -> None:
    # vocab 10 x 2, one layer: q k v o of 2 x 2, gate up down of 2 x 2, three norms of 2
    assert parameters(tiny_spec(10)) == 20 + 4 * 4 + 3 * 4 + 3 * 2
