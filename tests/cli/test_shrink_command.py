"""`octavo shrink` on a small model with a tokenizer: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli.main import main
from octavo.io.checkpoint import open_model
from support.small_models import talking_model

WORDS = "An octavo is a sheet folded to an eighth of its size; hello, hello.\n"


def shrink(tmp_path: Path, *words: str) -> int:
    model = talking_model(tmp_path / "m")
    text = tmp_path / "text.txt"
    text.write_text(WORDS * 30)
    short = ("--calibration", str(text), "--sequences", "2", "--length", "32", "--tokens", "100")
    return main(["shrink", str(model), "-o", str(tmp_path / "out"), *short, *words])


def test_what_stays_is_an_ordinary_model_that_runs_natively(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shrink(tmp_path, "--layers", "1", "--channels", "32", "--dtype", "fp32", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    with open_model(tmp_path / "out") as small, open_model(tmp_path / "m") as whole:
        assert len(small.spec.layers) == len(printed["layers"]) == 1
        assert small.spec.layers[0].mlp.intermediate == 32
        assert printed["of_layers"] == len(whole.spec.layers)
    assert printed["parameters"] < printed["parameters_before"]
    assert printed["quality"]["executor"].startswith("native")
    assert main(["run", str(tmp_path / "out"), "hello", "--max-tokens", "2"]) == 0


def test_lines_name_the_layers_and_the_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shrink(tmp_path, "--groups", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "stay" in lines[0]
    assert "mean KL" in lines[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "say what is to stay"), (("--layers", "99"), "99 layers"), (("--experts", "2"), "no ex")],
)
def test_what_cannot_be_kept_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert shrink(tmp_path, *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
