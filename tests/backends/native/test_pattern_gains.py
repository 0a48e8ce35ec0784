"""What leaving out zeros gained: what comes with Octavo, and what is measured here."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.backends.native.backend import resolve_isa
from octavo.backends.native.pattern_gains import Measured, PatternGain, keep, recorded, sentence
from octavo.backends.native.zeros import SPARSE_ISAS
from octavo.evals.patterns import CASES, Case, compare, gains, weights

HERE = Measured("a machine", "2026-01-02", (PatternGain("2:4", 4, 0.5, 1, 1.3, 0.9),))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))


def test_what_comes_with_octavo_speaks_of_every_pattern() -> None:
    found = recorded("no such machine")
    assert found.machine
    for case in CASES:
        mine = found.of(case.pattern, case.bits, case.zeros)
        assert [gain.rows for gain in mine] == [1, 16]
        assert all(gain.zeros == case.zeros and gain.smaller > 1 for gain in mine)


def test_what_is_measured_here_comes_first(tmp_path: Path) -> None:
    keep(HERE)
    assert recorded("a machine") == HERE
    assert recorded("another") != HERE
    keep(Measured("another", "2026-01-03", ()))
    assert recorded("a machine") == HERE
    [file] = (tmp_path / "measured").iterdir()
    for damage in (
        "{broken",
        '{"a machine": {"gains": [{"speed": 1}]}}',
        '{"a machine": {}}',
        "[]",
    ):
        file.write_text(damage, encoding="utf-8")
        assert recorded("a machine") == recorded("no such machine")


def test_the_nearest_share_is_taken() -> None:
    made = tuple(PatternGain("16x32", 4, zeros, 1, 2.0, zeros) for zeros in (0.5, 0.75))
    measured = Measured("m", "d", made)
    assert measured.of("16x32", 4, 0.6) == made[:1]
    assert measured.of("16x32", 4, 0.9) == made[1:]
    assert measured.of("16x32", 8, 0.5) == ()


def test_a_loss_is_called_one() -> None:
    pair = PatternGain("2:4", 4, 0.5, 1, 1.3, 1.43), PatternGain("2:4", 4, 0.5, 16, 1.3, 0.8)
    assert sentence(pair) == "1.43 times as fast at 1 row; 0.80 times as fast at 16 rows, a loss"


@pytest.mark.parametrize("case", [*CASES, Case("16x32", 4, 0.5, 64)])
def test_what_is_timed_has_the_zeros_it_says(case: Case) -> None:
    pair = weights(case, (64, 256))
    values = pair[1].unpack()
    assert (pair[0].unpack() == values).all()
    blocks = (values.reshape(4, 16, -1, case.columns) == 0).all((1, 3))
    if case.pattern == "2:4":
        assert ((values.reshape(64, -1, 4) == 0).sum(2) >= 2).all()
    else:
        assert (blocks.sum(1) == round(case.zeros * blocks.shape[1])).all()
    assert pair[1].bytes < pair[0].bytes
    assert [timed.rows for timed in compare(pair, 256, (1, 3), 2)] == [1, 3]


def test_gains_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.evals.patterns.MEMORY", (2048, 256))
    said: list[str] = []
    found = gains(CASES[:2], (1,), 2, said.append)
    held = ["2:4"] * (resolve_isa("") in SPARSE_ISAS) + ["16x32"]
    assert said == [f"{pattern} 4 bits 50%" for pattern in held]
    assert [gain.pattern for gain in found.gains] == held
    assert all(gain.faster > 0 and gain.smaller > 1.2 for gain in found.gains)


def test_what_would_be_expanded_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.evals.patterns.MEMORY", (2048, 256))
    monkeypatch.setenv("OCTAVO_ISA", "generic")
    assert {gain.pattern for gain in gains(CASES[:2], (1,), 1).gains} == {"16x32"}
