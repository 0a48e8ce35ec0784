"""Casts through the driver: counts of weights and inputs, and an infinity that names bf16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.compress.job import compress
from octavo.compress.recipe import Recipe, Step, from_flags
from octavo.core.errors import FormatError
from octavo.formats.casts import count_cast
from octavo.io.checkpoint import open_model
from octavo.spec.decoder import Role
from support import model_files
from support.model_files import MODELS
from support.small_models import material, small_model, small_weights


def test_weights_and_inputs_are_counted(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    result = compress(path, from_flags("cast", "bf16"), tmp_path / "out", material())
    found = {matrix.name: matrix for matrix in result.report.matrices()}
    with open_model(path) as model:
        weight = model.source.tensor(Role("down", 1)).float32()
    casts = found["layers.1.down"].casts
    assert casts is not None
    assert casts["weights"] == count_cast(weight, "bf16", np).to_dict()
    assert casts["weights"]["rounded"] > 0.9 * weight.size
    tokens = material().tokens
    assert tokens is not None
    assert casts["inputs in fp16"]["values"] == tokens.size * weight.shape[1]
    assert casts["inputs in fp16"]["overflow"] == 0
    assert casts["inputs in bf16"]["rounded"] > 0.9 * tokens.size * weight.shape[1]
    assert found["embed"].casts is not None
    assert set(found["embed"].casts) == {"weights"}
    with open_model(tmp_path / "out") as made:
        assert np.array_equal(
            made.source.tensor(Role("q", 0)).float32(),
            _bf16(path, Role("q", 0)),
        )


def _bf16(path: Path, role: Role) -> np.ndarray:  # type: ignore[type-arg]
    import ml_dtypes

    with open_model(path) as model:
        weight = model.source.tensor(role).float32()
    return weight.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("method", ["cast", "rtn"])
def test_an_infinity_in_fp16_is_an_error_that_names_bf16(method: str, tmp_path: Path) -> None:
    weights = small_weights("llama")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 65520.0
    path = model_files.write_hf(tmp_path / "m", MODELS["llama"], weights)
    recipe = Recipe((Step(method, "fp16"),))
    with pytest.raises(FormatError, match=r"layers\.1\.up: .*65504.*bf16"):
        compress(path, recipe, tmp_path / "out", material())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_loud_inputs_are_counted_as_overflow(tmp_path: Path) -> None:
    weights = small_weights("llama")
    weights["model.layers.0.input_layernorm.weight"][:] = 1e6
    path = model_files.write_hf(tmp_path / "m", MODELS["llama"], weights)
    result = compress(path, Recipe((Step("cast", "bf16"),)), tmp_path / "out", material())
    casts = {m.name: m.casts for m in result.report.matrices()}["layers.0.q"]
    assert casts is not None
    assert casts["inputs in fp16"]["overflow"] > 0.9 * casts["inputs in fp16"]["values"]
    assert casts["inputs in bf16"]["overflow"] == 0


def test_only_plain_floats(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    with pytest.raises(FormatError, match="plain floats"):
        compress(path, Recipe((Step("cast", "int4_g32"),)), tmp_path / "out", material())
