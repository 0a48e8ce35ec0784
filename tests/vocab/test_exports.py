"""Exports of models with another vocabulary: right where others can read them, else refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from octavo.cli.main import main
from octavo.io.checkpoint import open_model
from octavo.spec.graph import roles
from octavo.vocab.head import HeadPlan, head_model
from octavo.vocab.job import FactorPlan, factor_model, trim_model
from support.small_models import talking_model

TARGETS = ["hf", "compressed-tensors", "gguf"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    base = talking_model(root / "base")
    text = [list(range(97, 123)) * 4]
    for tables in ("head", "both", "shared"):
        factor_model(base, root / tables, FactorPlan(32, tables), text)
    head_model(base, root / "own head", HeadPlan("int4_g32", "rtn"))
    trim_model(base, root / "trimmed", ["abc"])
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["head", "both", "shared"])
def test_a_factored_vocabulary_is_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    name: str, target: str,
) -> None:  # fmt: skip
    assert export(models[name], tmp_path / "out.gguf", target) != 0
    assert "factored, which only Octavo runs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", TARGETS)
def test_phrases_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    pytest.importorskip("torch")
    from octavo.train import TrainConfig
    from octavo.vocab.mine import MinePlan
    from octavo.vocab.phrase_job import PhrasePlan, add_phrases

    names = np.random.default_rng(4).integers(0, 1000, (60, 2))
    text = "".join(f"def h{a}(self):\n    return self.{b}hell\n\n" for a, b in names)
    made = tmp_path / "phrases"
    add_phrases(models["base"], made, PhrasePlan(MinePlan(4), TrainConfig(1), 32), text)
    assert export(made, tmp_path / "out.gguf", target) != 0
    assert "3 phrases, which no other engine's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [made]


@pytest.mark.parametrize("target", ["hf", "gguf"])
@pytest.mark.parametrize("name", ["own head", "trimmed"])
def test_other_vocabularies_come_back_bit_for_bit(
    models: dict[str, Path], tmp_path: Path, name: str, target: str
) -> None:
    out = tmp_path / "out.gguf"
    assert export(models[name], out, target) == 0
    with open_model(models[name]) as ours, open_model(out) as theirs:
        assert (theirs.spec.vocab, theirs.spec.tied_head) == (ours.spec.vocab, ours.spec.tied_head)
        for role in roles(ours.spec):
            expected, found = (m.source.tensor(role).float32() for m in (ours, theirs))
            np.testing.assert_array_equal(found, expected, err_msg=str(role))
    if target == "hf":
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        assert "quantization_config" not in config


def export(model: Path, out: Path, target: str) -> int:
    return main(["export", str(model), "-o", str(out), "--to", target])
