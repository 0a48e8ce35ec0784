"""Pruned artifacts: exact zeros, fewer bytes in the file, the same values read back; --prune."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.compress.job import compress
from octavo.compress.pruning import parsed, pruned_recipe
from octavo.compress.recipe import Recipe, Step, from_flags
from octavo.core.errors import ConfigError
from octavo.io.artifact import read_manifest
from octavo.io.checkpoint import open_model
from octavo.spec.graph import linear_roles
from support.small_models import material, small_model


def recipe(prune: str, format: str = "int4_g32") -> Recipe:
    return pruned_recipe(prune, None, format)


@pytest.mark.parametrize(
    ("prune", "steps"),
    [
        ("wanda:0.5", [("wanda", {"sparsity": 0.5}), ("rtn", {})]),
        ("magnitude:2:4", [("magnitude", {"pattern": "2:4"}), ("rtn", {})]),
        ("wanda:16x32:0.25", [("wanda", {"sparsity": 0.25, "pattern": "16x32"}), ("rtn", {})]),
        ("sparsegpt:2:4", [("rtn", {}), ("sparsegpt", {"pattern": "2:4"})]),
    ],
)
def test_flags_become_steps(prune: str, steps: list[object]) -> None:
    assert [(s.method, dict(s.options)) for s in recipe(prune).steps] == steps


def test_pruning_goes_between_a_transform_and_its_encoder() -> None:
    made = pruned_recipe("wanda:0.5", "awq", "int4_g32", (("down", "int8_g32"),))
    assert [s.method for s in made.steps] == ["awq", "wanda", "rtn", "awq_clip", "awq_clip"]


@pytest.mark.parametrize("text", ["wanda", "wanda:", "wanda:half", "wanda:2:4:0.5:1", "gptq:0.5"])
def test_what_is_no_pruning_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        recipe(text)


def test_sparsegpt_takes_no_other_encoder() -> None:
    with pytest.raises(ConfigError, match="encodes as well"):
        pruned_recipe("sparsegpt:0.5", "gptq", "int4_g32")
    assert parsed("sparsegpt:0.5") == ("sparsegpt", {"sparsity": 0.5})


@pytest.mark.parametrize(
    ("prune", "format", "layout"),
    [
        ("sparsegpt:2:4", "int4_g32", "2:4"),
        ("wanda:0.5", "int8_g32", "bitmask"),
        ("magnitude:16x32:0.5", "int4_g32", "16x32"),
        ("wanda:0.5", "bf16", "bitmask"),
    ],
)
def test_an_artifact_holds_exact_zeros_in_fewer_bytes(
    tmp_path: Path, prune: str, format: str, layout: str
) -> None:
    path = small_model("qwen2", tmp_path / "m")
    steps = recipe(prune, format)
    compress(path, steps, tmp_path / "out", material())
    manifest = read_manifest(tmp_path / "out")
    sparse = [name for name, entry in manifest.tensors.items() if entry.layout == layout]
    with open_model(tmp_path / "out") as opened:
        roles = [role for role in linear_roles(opened.spec) if role.layer is not None]
        assert len(sparse) >= len(roles) // 2
        for role in roles:
            view = opened.source.tensor(role)
            zeros = view.float32() == 0
            assert zeros.sum() >= zeros.size // 2 - zeros.shape[0]
            if layout == "2:4":
                assert (zeros.reshape(-1, 4).sum(1) >= 2).all()
            whole = view.quantized(0, view.shape[0]).dequantize()
            np.testing.assert_array_equal(whole[3:7], view.float32(3, 7))
            assert view.raw(0, 2).data.size
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < size_dense(tmp_path, format)


def size_dense(tmp_path: Path, format: str) -> int:
    """Of the same model without pruning."""
    compress(tmp_path / "m", from_flags("rtn", format), tmp_path / "dense", material(0))
    return (tmp_path / "dense" / "model.safetensors").stat().st_size


def test_a_pruned_artifact_runs_natively_with_the_values_it_stores(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    result = compress(path, recipe("wanda:2:4"), tmp_path / "out", material(4, 24, 64))
    assert result.quality is not None
    assert np.isfinite(result.quality.kl)


@pytest.mark.parametrize("prune", ["wanda:2:4", "sparsegpt:0.5"])
def test_training_afterwards_keeps_every_zero(tmp_path: Path, prune: str) -> None:
    path = small_model("qwen2", tmp_path / "m")
    fed = material(10, 24)
    steps = recipe(prune).steps
    options = {"steps": 3, "batch": 2, "context": 12, "learning_rate": 0.01, "patience": 0}
    trained = Recipe((*steps, Step("qat", select=("layers.*",), options=options)))
    compress(path, Recipe(steps), tmp_path / "before", fed)
    result = compress(path, trained, tmp_path / "after", fed)
    assert {m.zeros for m in result.report.matrices() if m.name.startswith("layers")} != {None}
    with open_model(tmp_path / "before") as a, open_model(tmp_path / "after") as b:
        moved = 0
        for role in linear_roles(a.spec):
            if role.layer is None:
                continue
            before = a.source.tensor(role).float32()
            after = b.source.tensor(role).float32()
            mask = masks_of(prune, before)
            assert not after[~mask].any()
            moved += int((before != after).sum())
        assert moved


def masks_of(prune: str, before: np.ndarray) -> np.ndarray:
    """Zeros that are sure to be the pruner's: sparsegpt's are all of them; of 2:4 whole fours."""
    if prune.startswith("sparsegpt"):
        return before != 0
    fours = (before != 0).reshape(before.shape[0], -1, 4)
    full = fours.sum(2, keepdims=True) == 2
    return (fours | ~full).reshape(before.shape)
