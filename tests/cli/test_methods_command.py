"""`octavo methods`: one row for every method, from its class, its measurement and this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.backends.native.backend import resolve_isa
from octavo.backends.native.pattern_gains import Measured, PatternGain, machine_name, recorded
from octavo.cli.main import main
from octavo.compress.catalogue import described, find, measured
from octavo.compress.table import METHODS
from octavo.core.hardware import probe
from octavo.evals.planned import Gain, gains, planned

ROOT = Path(__file__).parents[2]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["methods", *words, "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["methods"]
    return rows


def test_every_method_of_the_table_says_all_of_itself() -> None:
    rows = described()
    assert [row.name for row in rows] == list(METHODS)
    known = {"rtn", "cast", "gptq", "hqq", "kmeans", "awq", "awq_clip", "smoothquant", "searched"}
    assert known <= {row.name for row in rows if row.output != "not declared"}
    for row in rows:
        assert row.source
        assert (row.output == "preserved") == bool(row.proof)
        if row.proof:
            assert (ROOT / row.proof).is_file()


def test_data_follows_from_what_a_method_needs() -> None:
    data = {row.name: row.data for row in described()}
    assert data["rtn"] == data["hqq"] == "none"
    assert data["gptq"] == "Hessian of the inputs"
    assert data["autoround"] == "inputs of whole blocks"
    assert data["awq"] == "mean |input|, samples of the inputs"


@pytest.mark.parametrize(
    ("term", "names"),
    [
        ("gptq", {"gptq"}),
        ("AWQ", {"awq"}),
        ("weight clustering", {"kmeans"}),
        ("Salient", {"awq"}),
        ("round to nearest", {"rtn"}),
        ("clipping", {"rtn", "awq_clip"}),
        ("pruning", {"magnitude", "wanda", "sparsegpt"}),
    ],
)
def test_synonyms_find_methods(term: str, names: set[str]) -> None:
    assert names <= {row.name for row in find(term)}
    if term in METHODS:
        assert {row.name for row in find(term)} == names


def test_an_unknown_term_names_those_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "alchemy"]) != 0
    error = capsys.readouterr().err
    assert "no method is known as 'alchemy'" in error
    assert "gptq" in error


def test_a_row_names_the_kernel_and_the_cost(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    [row] = printed(capsys, "gptq")
    assert row["kernel"].startswith("linear_")
    assert row["bits"] == pytest.approx(4.25, rel=0.05)
    assert row["faster_than_bf16"] is None
    assert row["kl"] == measured()["methods"].get("gptq")
    [plain] = printed(capsys, "round to nearest")
    assert plain["kl"] == measured()["methods"]["rtn"]
    assert main(["methods", "rtn"]) == 0
    text = capsys.readouterr().out
    assert "approximated, KL 0." in text
    assert f"({measured()['model']}, {measured()['date']})" in text
    assert "speed: see --measure" in text
    assert main(["methods", "awq"]) == 0
    assert "preserved, held by tests/" in capsys.readouterr().out


def test_what_was_measured_here_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    calls: list[list[str]] = []

    def made_up(names: list[str], progress: object = None) -> tuple[Gain, ...]:
        calls.append(names)
        return tuple(Gain(name, 3.5, 2.25) for name in names)

    monkeypatch.setattr("octavo.evals.planned.gains", made_up)
    [row] = printed(capsys, "gptq", "--measure")
    assert row["faster_than_bf16"] == 2.25
    [again] = printed(capsys, "gptq")
    assert again["faster_than_bf16"] == 2.25
    assert calls == [["int4_g64"]]
    [stored] = (tmp_path / "measured").iterdir()
    stored.write_text("{broken")
    [forgotten] = printed(capsys, "gptq")
    assert forgotten["faster_than_bf16"] is None


def test_the_results_file_is_of_this_table() -> None:
    record = measured()
    assert record["model"]
    assert record["date"]
    for name, found in record["methods"].items():
        assert name in METHODS
        assert found["low"] <= found["kl"] <= found["high"]
        assert found["format"] == next(row.format for row in described() if row.name == name)


def test_the_planner_says_why_a_format_has_no_kernel() -> None:
    refused = planned("int4_g18")
    assert not refused.kernel
    assert refused.reason
    assert planned("lut4_g64").kernel == planned("nf4_g64").kernel != ""


def test_gains_are_ratios_to_bf16() -> None:
    [same] = gains(["bf16"])
    assert same.smaller == 1.0
    assert same.faster > 0
    [small] = gains(["int4_g32"])
    assert 3 < small.smaller < 4


@pytest.mark.parametrize(
    ("term", "names"),
    [("kivi", {"kivi2", "kivi4"}), ("KIVI4", {"kivi4"}), ("kv cache", {"int8", "kivi2"})],
)
def test_formats_of_keys_and_values_stand_with_the_methods(
    term: str, names: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["methods", term, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["methods"] == []
    backends = {row["name"]: row["backend"] for row in content["kv_formats"]}
    assert names <= set(backends)
    assert all(backends[name] == "native" for name in names)


def test_a_cache_without_a_kernel_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "int8_dot"]) == 0
    text = capsys.readouterr().out
    assert "the reference decoder runs it, slowly; --strict refuses it" in text
    assert "8.25 bits each" in text


def test_pruners_say_what_patterns_gain_and_lose(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    for row in printed(capsys, "pruning"):
        assert {gain["pattern"] for gain in row["zeros_left_out"]["gains"]} == {"2:4", "16x32"}
    [other] = printed(capsys, "gptq")
    assert other["zeros_left_out"] is None
    assert main(["methods", "wanda"]) == 0
    text = capsys.readouterr().out
    assert "16x32, 4 bits, 75% zeros" in text
    assert "times as fast at 16 rows" in text
    assert "smaller in the file alone: dense bytes and time when they run" in text


def test_patterns_are_measured_with_pruners_only(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    monkeypatch.setattr("octavo.evals.planned.gains", lambda names, progress=None: ())
    here = recorded(machine_name(probe(), resolve_isa("")))
    mine = Measured(here.machine, "2001-02-03", (PatternGain("2:4", 8, 0.5, 1, 1.5, 0.5),))
    made = Measured(machine_name(probe(), resolve_isa("")), mine.date, mine.gains)
    monkeypatch.setattr("octavo.evals.patterns.gains", lambda progress=None: made)
    printed(capsys, "gptq", "--measure")
    assert recorded(made.machine) == here
    [row] = printed(capsys, "wanda", "--measure")
    assert row["zeros_left_out"]["date"] == "2001-02-03"
    assert main(["methods", "wanda"]) == 0
    assert "0.50 times as fast at 1 row, a loss" in capsys.readouterr().out
