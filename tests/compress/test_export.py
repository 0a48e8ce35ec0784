"""Exports: other tools load them and have our values; what goes out and comes back is the same."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.compress.export import export_compressed_tensors, export_hf
from octavo.compress.job import compress
from octavo.compress.recipe import from_flags
from octavo.core.errors import FormatError, ResourceError, UnsupportedError, UserError
from octavo.io.checkpoint import open_model
from octavo.io.safetensors_file import open_safetensors
from octavo.spec.decoder import Role
from octavo.spec.graph import roles
from support.small_models import material, small_model, talking_model

FORMATS = [
    "int4_g32", "int4_g32_asym", "int3_g32", "int8_channel", "int5_channel_asym", "int4_g32_sbf16",
    "int8_tensor", "ternary_channel", "binary_channel", "fp8_e4m3_channel_sfp32",
    "fp8_e4m3_tensor_sfp32",
]  # fmt: skip


def artifact(tmp_path: Path, name: str, family: str = "llama") -> Path:
    path = small_model(family, tmp_path / "m")
    compress(path, from_flags("rtn", name), tmp_path / "a", material(0))
    return tmp_path / "a"


def name(role: Role) -> str:
    where = "" if role.layer is None else f"layers.{role.layer}."
    return where + role.part + ("" if role.expert is None else f".{role.expert}")


def values(path: Path) -> dict[str, np.ndarray]:
    with open_model(path) as model:
        return {name(role): model.source.tensor(role).float32() for role in roles(model.spec)}


@pytest.mark.parametrize("name", FORMATS)
def test_compressed_tensors_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    source = artifact(tmp_path, name)
    export_compressed_tensors(source, tmp_path / "out")
    ours, back = values(source), values(tmp_path / "out")
    assert ours.keys() == back.keys()
    for role, expected in ours.items():
        np.testing.assert_array_equal(back[role], expected, err_msg=role)
    export_compressed_tensors(tmp_path / "out", tmp_path / "again")
    first, second = (tmp_path / d / "model.safetensors" for d in ("out", "again"))
    if name not in ("binary_channel", "ternary_channel", "int8_tensor", "fp8_e4m3_tensor_sfp32"):
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_their_own_decompressor_has_our_values_in_the_scales_type(
    tmp_path: Path, name: str
) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    source = artifact(tmp_path, name)
    export_compressed_tensors(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    parsed = QuantizationConfig.model_validate(config)
    (scheme,) = parsed.config_groups.values()
    compressor = compressors.BaseCompressor.get_value_from_registry(scheme.format)
    layer = "model.layers.1.mlp.down_proj"
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    state = {k.removeprefix(f"{layer}."): t for k, t in tensors.items() if k.startswith(layer)}
    found = compressor.decompress(state, scheme)["weight"]
    ours = torch.from_numpy(values(source)["layers.1.down"])
    assert torch.equal(found.float(), ours.to(found.dtype).float())


LOADED = [
    "int4_g32", "int4_g32_sbf16", "int8_channel", "int3_g32", "fp8_e4m3_channel_sfp32",
    "fp8_e4m3_tensor_sfp32",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, None) for name in LOADED), ("int4_g32_sfp32", {"dequantize": True})],
)
@pytest.mark.parametrize("family", ["qwen2", "llama"])  # with a tied head, and without
def test_transformers_loads_and_computes_what_the_dequantized_model_does(
    family: str, name: str, options: dict[str, bool] | None, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    source = artifact(tmp_path, name, family)
    export_compressed_tensors(source, tmp_path / "ct")
    export_hf(source, tmp_path / "hf")
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    logits = []
    for path, given in (("ct", options), ("hf", None)):
        config = given and transformers.CompressedTensorsConfig(**given)
        kind = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[family]
        model = getattr(transformers, kind).from_pretrained(
            tmp_path / path, dtype=torch.float32, quantization_config=config
        )
        logits.append(model(ids).logits.detach())
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "qwen3_moe"])
def test_hf_holds_every_value(tmp_path: Path, family: str) -> None:
    source = artifact(tmp_path, "int4_g32", family)
    export_hf(source, tmp_path / "out")
    back = values(tmp_path / "out")
    for role, expected in values(source).items():
        # Gemma's norms go through fl(fl(w - 1) + 1): two roundings of numbers below 4.
        tolerance = 2.0**-22 if family == "gemma3" and "norm" in role else 0
        np.testing.assert_allclose(back[role], expected, rtol=0, atol=tolerance, err_msg=role)


def test_bf16_rounds_once(tmp_path: Path) -> None:
    source = artifact(tmp_path, "int4_g32")
    export_hf(source, tmp_path / "out", "bf16")
    types = {
        t.type for t in open_safetensors(tmp_path / "out" / "model.safetensors").tensors.values()
    }
    assert types == {"BF16"}
    ours = torch.from_numpy(values(source)["layers.0.q"])
    back = torch.from_numpy(values(tmp_path / "out")["layers.0.q"])
    assert torch.equal(back, ours.bfloat16().float())


def test_a_tokenizer_goes_with_it(tmp_path: Path) -> None:
    export_hf(talking_model(tmp_path / "m"), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["nf4_g32", "int4_g32_offset", "lut4_channel", "fp8_e5m2_channel"])
def test_what_cannot_be_said_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    try:
        source = artifact(tmp_path, name)
    except FormatError:
        pytest.skip("round to nearest has no such format")
    with pytest.raises(UnsupportedError, match=name):
        export_compressed_tensors(source, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "m"]


def test_a_plain_model_has_no_codes_to_export(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    with pytest.raises(UnsupportedError, match="no layer is quantized"):
        export_compressed_tensors(path, tmp_path / "out")


def test_an_output_that_exists_stays(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        export_hf(path, tmp_path / "out")


def test_values_beyond_fp16_name_the_tensor(tmp_path: Path) -> None:
    from support import model_files
    from support.model_files import MODELS
    from support.small_models import small_weights

    weights = small_weights("llama")
    weights["lm_head.weight"] *= np.float32(1e6)
    path = model_files.write_hf(tmp_path / "m", MODELS["llama"], weights)
    with pytest.raises(FormatError, match=r"lm_head\.weight.*bf16"):
        export_hf(path, tmp_path / "out", "fp16")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path, *rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = small_model("llama", tmp_path / "m")
    monkeypatch.setattr("octavo.compress.export.write_tokenizer", full)
    with pytest.raises(ResourceError, match="No space left"):
        export_hf(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
