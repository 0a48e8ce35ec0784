"""Rows of a measurement that go on where they were, and never mix conditions."""

from __future__ import annotations

import json
from pathlib import Path

from rows import Rows

CONDITIONS = {"model": "a", "text": "b"}


def test_a_second_run_finds_what_the_first_one_wrote(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    Rows(path, "rows", CONDITIONS, {"date": "1"}).add("x", {"kl": 1.0})
    again = Rows(path, "rows", CONDITIONS, {"date": "2"})
    assert "x" in again
    assert "y" not in again
    again.add("y", {"kl": 2.0})
    content = json.loads(path.read_text())
    assert content == {
        **CONDITIONS, "date": "2", "rows": {"x": {"kl": 1.0}, "y": {"kl": 2.0}}
    }  # fmt: skip
    assert list(again.in_order(("y", "z", "x"))) == ["y", "x"]


def test_rows_of_other_conditions_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    Rows(path, "rows", CONDITIONS, {}).add("x", {"kl": 1.0})
    other = Rows(path, "rows", {**CONDITIONS, "model": "c"}, {})
    assert "x" not in other
    other.add("y", {"kl": 2.0})
    assert list(json.loads(path.read_text())["rows"]) == ["y"]
