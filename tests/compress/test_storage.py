"""Artifacts are stored as compressed-tensors where that says all of it, and lose nothing by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.compress.artifact import write_manifest
from octavo.compress.export import export_hf
from octavo.compress.job import Result, compress
from octavo.compress.recipe import Recipe, Step
from octavo.core.errors import ModelFileError, UserError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.io.checkpoint import open_model
from octavo.io.collapse import refuse_collapsed
from octavo.io.safetensors_file import open_safetensors
from octavo.io.served import Served
from octavo.spec.decoder import Role
from octavo.spec.graph import roles
from support.small_models import material, small_model

SHARED = ["int4_g32", "int4_g32_asym", "int3_g32", "int8_channel", "int5_channel_asym_sfp32"]
SHARED += ["fp8_e4m3_channel_sfp32", "int4_g32_sbf16"]


def made(tmp_path: Path, format: str, family: str = "llama", **more: str) -> Result:
    source = small_model(family, tmp_path / "m")
    recipe = replace(Recipe((Step("rtn", format),)), **more)
    return compress(source, recipe, tmp_path / "a", material(0))


def config(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((path / "config.json").read_text())
    return found


@pytest.mark.parametrize("format", SHARED)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "qwen3_moe"])
def test_blocks_are_shared_and_come_back_bit_for_bit(
    tmp_path: Path, family: str, format: str
) -> None:
    result = made(tmp_path, format, family)
    assert result.storage == "compressed-tensors"
    quantization = config(result.out)["quantization_config"]
    assert isinstance(quantization, dict)
    assert quantization["quant_method"] == "compressed-tensors"
    with open_model(tmp_path / "m") as before, open_model(result.out) as after:
        for role in roles(before.spec):
            view, values = after.source.tensor(role), before.source.tensor(role).float32()
            if len(values.shape) == 2 and role.layer is not None and role.part != "router":
                expected = rtn.encode(values, NumberFormat.parse(format))
                assert str(view.format) == format
                values = expected.dequantize()
            np.testing.assert_array_equal(view.float32(), values, err_msg=str(role))


@pytest.mark.parametrize(
    ("family", "format"),
    [
        ("llama", "ternary_channel"), ("llama", "binary_channel"), ("llama", "int8_tensor"),
        ("llama", "int4_g32_offset"), ("llama", "nf4_g32"), ("phi3", "int4_g32"),
        ("llama", "bf16"),
    ],
)  # fmt: skip
def test_what_would_come_back_as_something_else_stays_ours(
    tmp_path: Path, family: str, format: str
) -> None:
    result = made(tmp_path, format, family)
    assert result.storage == "octavo"
    assert config(result.out)["quantization_config"]["quant_method"] == "octavo"  # type: ignore[index]


@pytest.mark.parametrize("part", ["embed", "head"])
def test_tables_with_codes_stay_ours(tmp_path: Path, part: str) -> None:
    source = small_model("llama", tmp_path / "m")
    recipe = Recipe((Step("rtn", "int4_g32"), Step("rtn", "int8_channel", (part,))))
    assert compress(source, recipe, tmp_path / "a", material(0)).storage == "octavo"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("format", ["int4_g32", "int8_channel", "fp8_e4m3_channel_sfp32"])
def test_transformers_loads_it_as_it_is(tmp_path: Path, family: str, format: str) -> None:
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    result = made(tmp_path, format, family)
    export_hf(result.out, tmp_path / "hf")
    kind = getattr(transformers, {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[family])
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    ours, plain = (
        kind.from_pretrained(path, dtype=torch.float32)(ids).logits.detach()
        for path in (result.out, tmp_path / "hf")
    )
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_what_it_was_made_for_travels_with_it(tmp_path: Path) -> None:
    result = made(tmp_path, "int8_channel", activations="a8", kv="int8")
    with open_model(result.out) as model:
        assert model.source.served == Served("a8", "int8")  # type: ignore[union-attr]


def test_a_collapsed_one_is_refused(tmp_path: Path) -> None:
    out = made(tmp_path, "int4_g32").out
    content = json.loads((out / "octavo.json").read_text())
    write_manifest(out, {**content, "quality": None})
    with open_model(out) as model:
        refuse_collapsed(model)
    quality = {"collapsed": True, "executor": "x", "context": 8, "texts": []}
    write_manifest(out, {**content, "quality": quality})
    with open_model(out) as model, pytest.raises(UserError, match="collapsed"):
        refuse_collapsed(model)


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    out = made(tmp_path, "int4_g32").out
    path = out / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="SHA-256"):
        open_model(out)


def test_a_manifest_that_says_another_format_is_damaged(tmp_path: Path) -> None:
    out = made(tmp_path, "int4_g32").out
    content = json.loads((out / "octavo.json").read_text())
    content["tensors"]["model.layers.1.mlp.up_proj.weight"]["format"] = "int4_g64"
    (out / "octavo.json").write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=r"octavo\.json says"):
        open_model(out)


def test_norms_that_are_stored_less_one_are_stored_exactly_or_not_so(tmp_path: Path) -> None:
    """A factor of 1e-9 would come back as 0 from 1e-9 - 1: then the artifact stays ours."""
    from octavo.compress.storage import _less

    exact = np.float32([1, 1.5, 0.25, 3, -2])
    stored = _less(exact, 1.0)
    assert stored is not None
    np.testing.assert_array_equal(stored, [0, 0.5, -0.75, 2, -3])
    assert _less(np.float32([1e-9]), 1.0) is None


def test_names_in_the_file_are_the_familys(tmp_path: Path) -> None:
    out = made(tmp_path, "int4_g32", "gemma3").out
    names = set(open_safetensors(out / "model.safetensors").tensors)
    assert "model.layers.0.mlp.down_proj.weight_packed" in names
    with open_model(out) as model:
        assert model.source.has(Role("final_norm"))
