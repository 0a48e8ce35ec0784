"""2,000 of the mutations that `make fuzz` makes 100,000 of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FUZZ = Path(__file__).parents[2] / "scripts" / "fuzz.py"
CASES = 2000


@pytest.mark.skipif(not FUZZ.exists(), reason="the scripts aren't part of a wheel's tests")
def test_mutated_files_are_read_or_refused_and_every_reader_line_is_reached() -> None:
    command = [sys.executable, str(FUZZ), "--cases", str(CASES), "--traced", str(CASES)]
    result = subprocess.run([*command, "--workers", "2", "--json"], capture_output=True, text=True)
    summary = json.loads(result.stdout)
    assert summary["failures"] == []
    assert summary["unreached"] == []
    assert summary["cases"] == CASES
    assert summary["kinds"] > 50  # refusals differ: the mutations do reach different checks
    assert summary["read"] > CASES // 20  # and some mutations leave a file that is sound
    assert result.returncode == 0


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FUZZ.parent))
    import fuzz

    return fuzz


def crash(directory: Path) -> None:
    raise KeyError(str(directory))


def hang(directory: Path) -> None:
    while directory:
        pass


@pytest.mark.skipif(not FUZZ.exists(), reason="the scripts aren't part of a wheel's tests")
@pytest.mark.parametrize(("reader", "message"), [(crash, "KeyError"), (hang, "ran for more than")])
def test_the_harness_sees_crashes_and_hangs(
    fuzz: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reader: object,
    message: str,
) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    monkeypatch.setattr(fuzz, "_READ", dict.fromkeys(fuzz._READ, reader))
    tally = fuzz.run_range(0, 7, 8, 0, tmp_path / "progress")
    ((case, problem),) = tally.failures
    assert case == 7
    assert message in problem
    assert (tmp_path / "progress").read_text() == "7"
