"""`octavo vocab` from the command line: artifacts that load, figures that are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli.main import main
from octavo.io.checkpoint import open_model
from octavo.spec.decoder import Role
from support.small_models import talking_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_model(tmp_path_factory.mktemp("vocab") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("he said hello to the hall, and hell it was not. " * 30, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("tables", "tied", "embed"), [("head", False, 0), ("both", False, 32), ("shared", True, 32)]
)
def test_factor_writes_what_it_says(
    model: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    tables: str, tied: bool, embed: int,
) -> None:  # fmt: skip
    words = ["vocab", "factor", str(model), "-o", str(tmp_path / "out"), "--rank", "32"]
    more = ["--tables", tables, "--calibration", text, "--states", "512", "--tokens", "200"]
    assert main([*words, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["quality"]["texts"][0]["kl"]["mean"]["value"] < 5
    with open_model(tmp_path / "out") as opened:
        spec = opened.spec
        assert (spec.head_rank, spec.embed_rank, spec.tied_head) == (32, embed, tied)
        assert str(opened.source.tensor(Role("head_down")).format) == "int8_g32"


def test_full_rank_in_fp32_diverges_by_nothing(
    model: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["vocab", "factor", str(model), "-o", str(tmp_path / "out"), "--rank", "64"]
    more = ["--format", "fp32", "--calibration", text, "--states", "512", "--tokens", "200"]
    assert main([*words, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quality"]["texts"][0]["kl"]["mean"]["value"] < 1e-6


def test_trim_says_what_is_left(
    model: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vocab", "trim", str(model), "-o", str(tmp_path / "out"), "--text", text]) == 0
    assert "264 of 264 tokens" in capsys.readouterr().out


def test_bad_input(
    model: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["vocab", "factor", str(model), "-o", str(tmp_path / "out"), "--calibration", text]
    assert main([*words, "--rank", "48"]) == 2
    assert "48" in capsys.readouterr().err
    assert main([*words, "--rank", "96", "--format", "fp32"]) == 2
    assert "rank 96" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
