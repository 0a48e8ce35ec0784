"""`octavo vocab` from the command line: artifacts that load, figures that are there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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


def test_columns_stored_twice_are_served_and_diverge_less(
    model: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kl = []
    for columns in ("0", "32"):
        out = tmp_path / columns
        words = ["vocab", "factor", str(model), "-o", str(out), "--rank", "64", "--twice", columns]
        more = ["--format", "int4_g32", "--calibration", text, "--states", "512", "--tokens", "200"]
        assert main([*words, *more, "--json"]) == 0
        quality = json.loads(capsys.readouterr().out)["quality"]
        kl.append(quality["texts"][0]["kl"]["mean"]["value"])
        with open_model(out) as opened:
            assert opened.spec.head_rank == 64 + int(columns)
            formats = [str(opened.source.tensor(Role(p)).format) for p in ("head", "head_down")]
            assert formats == ["int4_g32", "int8_g32"]
    assert kl[1] < 0.7 * kl[0]


@pytest.mark.parametrize(("format", "method"), [("int4_g32", "gptq"), ("int3_g64", "rtn")])
def test_a_head_of_its_own_format(
    model: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    format: str, method: str,
) -> None:  # fmt: skip
    if method == "gptq":
        pytest.importorskip("torch")
    words = ["vocab", "head", str(model), "-o", str(tmp_path / "out"), "--format", format]
    more = ["--method", method, "--calibration", text, "--states", "512", "--tokens", "200"]
    assert main([*words, *more]) == 0
    assert f"the head is in {format}, by {method}" in capsys.readouterr().out
    with open_model(model) as before, open_model(tmp_path / "out") as opened:
        assert not opened.spec.tied_head
        assert str(opened.source.tensor(Role("head")).format) == format
        old, new = (m.source.tensor(Role("embed")) for m in (before, opened))
        assert np.array_equal(old.float32(), new.float32())


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
    assert main([*words, "--rank", "32", "--twice", "48"]) == 2
    assert "twice" in capsys.readouterr().err
    assert main([*words, "--rank", "32", "--twice", "32", "--tables", "shared"]) == 2
    assert "tables=head" in capsys.readouterr().err
    words = ["vocab", "head", str(model), "-o", str(tmp_path / "out"), "--calibration", text]
    assert main([*words, "--format", "int4_g48"]) == 2
    assert "48" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
