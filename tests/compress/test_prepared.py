"""Preparations: proven, written down, and refused where they change the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.options import ReferenceOptions
from octavo.compress import plan as planning
from octavo.compress.job import compress
from octavo.compress.methods.quarot import QuaRot, RotatedSource
from octavo.compress.plan import plan
from octavo.compress.recipe import ALL, Recipe, Step, from_flags
from octavo.core.errors import ConfigError, NumericsError, UnsupportedError
from octavo.io.checkpoint import open_model
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from support.small_models import material, small_model, tokens

EXACT = Recipe((Step("quarot"), Step("rtn", "fp32", ALL)))


def test_a_rotated_artifact_computes_what_its_source_does(tmp_path: Path) -> None:
    source = small_model("qwen2", tmp_path / "m")
    out = compress(source, EXACT, tmp_path / "out", material(0)).out
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    text = tokens(1, 20)[0].tolist()
    found = []
    for path in (source, out):
        with open_model(path) as model:
            decoder = ReferenceDecoder.load(model.source, model.spec, ReferenceOptions())
            found.append(decoder.logits(text))
            exact = ReferenceDecoder.load(model.source, model.spec, ReferenceOptions(dtype="fp64"))
            noise = np.abs(exact.logits(text) - found[-1]).max()
    assert np.abs(found[0] - found[1]).max() <= 16 * noise


def test_the_report_proves_it_and_counts_the_untied_head(tmp_path: Path) -> None:
    source = small_model("qwen2", tmp_path / "m")
    recipe = Recipe((Step("quarot"), Step("rtn", "int8_channel", ALL)))
    result = compress(source, recipe, tmp_path / "out", material(0))
    proof, cost = result.report.stages[0].notes
    with open_model(source) as model:
        rows, width = model.spec.vocab, model.spec.hidden
    assert "logits of 32 tokens move by" in proof
    assert f"adds {(rows * width + 2 * rows) / 1e6:.1f} MB" in cost


@dataclass(frozen=True)
class Bent(QuaRot):
    """A rotation that is none."""

    def prepare(self, source: WeightSource, spec: DecoderSpec) -> WeightSource:
        rotated = super().prepare(source, spec)
        assert isinstance(rotated, RotatedSource)
        assert rotated.Q is not None
        rotated.Q[0, 0] += 0.01
        return rotated


def test_what_changes_the_model_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str, options: Mapping[str, object]) -> Bent:
        return Bent()

    monkeypatch.setattr(planning, "build_preparation", build)
    source = small_model("qwen2", tmp_path / "m")
    with pytest.raises(NumericsError, match="computes something else"):
        compress(source, EXACT, tmp_path / "out", material(0))
    assert not (tmp_path / "out").exists()


def test_flags_put_the_rotation_first_and_gptq_after_it() -> None:
    steps = from_flags("quarot", "int4_g32").steps
    assert [step.method for step in steps] == ["quarot", "rtn", "gptq"]


def test_an_untied_head_can_be_selected(tmp_path: Path) -> None:
    with open_model(small_model("qwen2", tmp_path)) as model:
        steps = (Step("quarot"), Step("rtn", "int4_g32"), Step("rtn", "int8_g32", ("head",)))
        resolved = plan(Recipe(steps), model.spec)
    assert resolved.steps[Role("head")].format == "int8_g32"
    assert Role("embed") not in resolved.steps


def test_a_preparation_takes_the_whole_model_and_comes_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whole model"):
        Step("quarot", select=("down",))
    with pytest.raises(ConfigError, match="preparations come first"):
        Recipe((Step("awq"), Step("quarot"), Step("rtn", "int4_g32")))
    with (
        open_model(small_model("gemma3", tmp_path)) as model,
        pytest.raises(UnsupportedError, match="residual: false"),
    ):
        plan(EXACT, model.spec)


def test_an_encoder_of_blocks_has_no_embedding_and_is_no_fallback(tmp_path: Path) -> None:
    with (
        open_model(small_model("qwen2", tmp_path)) as model,
        pytest.raises(ConfigError, match="embed is in none"),
    ):
        plan(Recipe((Step("autoround", "int4_g32", ALL),)), model.spec)
    with pytest.raises(ConfigError, match="whole blocks"):
        Recipe((Step("rtn", "int4_g32"),), fallback="autoround")
