"""`octavo distill`: a student that loads, has its layers, and came nearer to its teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli.main import main
from octavo.io.checkpoint import open_model
from support.small_models import talking_model

pytest.importorskip("torch")


@pytest.mark.parametrize("share", ["0", "0.5"])
def test_a_student_is_written(
    share: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = talking_model(tmp_path / "teacher"), tmp_path / "t.txt"
    lines = (f"he said {i * i} hello to hall {i}\n" for i in range(60))
    text.write_text("".join(lines), encoding="utf-8")
    words = ["distill", str(model), "-o", str(tmp_path / "out"), "--text", str(text)]
    more = ["--keep", "1", "--steps", "4", "--context", "16", "--on-policy", share, "--json"]
    assert main([*words, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl_after"] < found["kl_before"]
    with open_model(tmp_path / "out") as opened:
        assert len(opened.spec.layers) == 1


def test_more_layers_than_the_teacher_has_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = talking_model(tmp_path / "teacher"), tmp_path / "t.txt"
    text.write_text("hello " * 200, encoding="utf-8")
    words = ["distill", str(model), "-o", str(tmp_path / "out"), "--text", str(text)]
    assert main([*words, "--keep", "9"]) == 2
    assert "9 of 2 layers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
