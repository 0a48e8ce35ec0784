"""Numbers and tables as they are printed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from octavo.cli import output
from octavo.core.hardware import Cache


def test_table_is_llama_benchs_markdown() -> None:
    text = output.markdown_table(
        ("model", "t/s"), [("tiny", "9.50 ± 0.10"), ("a larger one", "1.00")], ("left", "right")
    )
    assert text.splitlines() == [
        "| model        |         t/s |",
        "|--------------|------------:|",
        "| tiny         | 9.50 ± 0.10 |",
        "| a larger one |        1.00 |",
    ]


def test_only_warnings_are_shown_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    output.warn(["context 8192 of 32768", "WARNING: KV int4 collapses this model"])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "WARNING: KV int4 collapses this model\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (75_831_296, "72.32 MiB"), (3 << 30, "3.00 GiB")],
)
def test_binary_sizes(size: int, text: str) -> None:
    assert output.human_binary(size) == text


@pytest.mark.parametrize(
    ("size", "text"), [(75_600_000, "75.6 MB"), (1_210_000_000, "1.21 GB"), (2_500, "2.5 kB")]
)
def test_decimal_sizes(size: int, text: str) -> None:
    assert output.human_decimal(size) == text


def test_summary_line() -> None:
    line = output.summary_line(214.3, 75_600_000, ["linear_a8_w4_avx512vnni"], 2)
    assert line == "214 tok/s · 75.6 MB/token · 16.2 GB/s · linear_a8_w4_avx512vnni · 2 threads"
    assert output.summary_line(8.426, 1_000_000, [], 1).startswith("8.43 tok/s")
    assert output.summary_line(8.4, 1_000_000, [], 1).endswith("1 thread")


def test_json_takes_dataclasses_sets_and_numpy_scalars(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"c": Cache(1, "Data", 2, 1), "s": frozenset("ba"), "n": np.float32(0.5)}
    output.emit_json(value)
    assert json.loads(capsys.readouterr().out) == {
        "c": {"level": 1, "kind": "Data", "size": 2, "shared_by": 1},
        "s": ["a", "b"],
        "n": 0.5,
    }


def test_json_refuses_what_has_no_json_form() -> None:
    with pytest.raises(TypeError, match="complex"):
        output.emit_json({"x": 1j})
    with pytest.raises(ValueError, match="JSON"):
        output.emit_json({"x": float("inf")})
