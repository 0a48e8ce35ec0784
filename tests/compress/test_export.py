"""Exports: other tools load them and have our values; what goes out and comes back is the same."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

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


def by_token(tmp_path: Path, name: str = "int8_channel") -> Path:
    path = small_model("llama", tmp_path / "m")
    kept = (("down", "a8"), ("head", "a8"))
    recipe = replace(from_flags("rtn", name), activations="a8_token", keep_activations=kept)
    compress(path, recipe, tmp_path / "a", material(0))
    return tmp_path / "a"


@pytest.mark.parametrize("name", ["int8_channel", "int8_channel_sbf16", "int8_tensor"])
def test_activations_by_token_go_with_their_layers(tmp_path: Path, name: str) -> None:
    source = by_token(tmp_path, name)
    export_compressed_tensors(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    said = {group["format"]: group for group in config["config_groups"].values()}
    assert said.keys() == {"int-quantized", "pack-quantized"}
    inputs = said["int-quantized"]["input_activations"]
    wanted = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
    assert inputs.items() >= wanted.items()
    assert said["pack-quantized"]["input_activations"] is None
    assert all("down_proj" in target for target in said["pack-quantized"]["targets"])
    back = values(tmp_path / "out")
    for role, expected in values(source).items():
        np.testing.assert_array_equal(back[role], expected, err_msg=role)


def test_codes_of_fewer_bits_stay_packed_whatever_their_inputs(tmp_path: Path) -> None:
    export_compressed_tensors(by_token(tmp_path, "int4_channel"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert (group["format"], group["input_activations"]) == ("pack-quantized", None)


def test_transformers_rounds_the_activations_too(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    from octavo.backends.base import RuntimeConfig
    from octavo.backends.reference.executor import load_reference
    from octavo.evals.scorer import ExecutorScorer

    export_compressed_tensors(by_token(tmp_path), tmp_path / "out")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    theirs = model(torch.tensor([ids])).logits[0].detach().numpy()
    found = {}
    for activations in ("a8_token", "a32"):
        with open_model(tmp_path / "a") as opened:
            config = RuntimeConfig(
                context=16, max_seqs=1, activations=activations, kv_format="fp32",
                keep_activations=(("down", "a32"), ("head", "a32")),
            )  # fmt: skip
            executor = load_reference(opened.source, opened.spec, config)
        scorer = ExecutorScorer(executor, activations)
        (found[activations],) = (rows.copy() for rows in scorer.logits(ids, 0, 16))
        scorer.close()
    # compressed-tensors takes 127.5 for the largest input and we 127: other roundings, as large.
    rounding = np.abs(found["a8_token"] - found["a32"]).max()
    assert 0 < np.abs(theirs - found["a32"]).max() < 4 * rounding


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_config_names_the_type_by_every_key_that_the_source_has(
    tmp_path: Path, dtype: Literal["bf16", "fp16"]
) -> None:
    small_model("llama", tmp_path / "m")
    export_hf(tmp_path / "m", tmp_path / "plain", dtype)
    assert "dtype" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    model = tmp_path / "m" / "config.json"
    model.write_text(json.dumps({**json.loads(model.read_text()), "dtype": "float32"}))
    export_hf(tmp_path / "m", tmp_path / "out", dtype)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["dtype"] == found["torch_dtype"] == {"bf16": "bfloat16", "fp16": "float16"}[dtype]


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
