"""Sources: the same model from both kinds of files, and each trap of the GGUF conventions."""

from __future__ import annotations

from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest

from octavo.core.errors import InternalError, ModelFileError, UnsupportedError
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.safetensors_file import write_safetensors
from octavo.spec.decoder import Role
from octavo.spec.graph import role_shape, roles
from support import model_files
from support.model_files import MODELS, interleave


def both(tmp_path: Path, name: str) -> tuple[OpenModel, OpenModel]:
    model = MODELS[name]
    tensors = model_files.weights(model)
    hf = model_files.write_hf(tmp_path / "hf", model, tensors)
    return open_model(hf), open_model(model_files.write_gguf(tmp_path / "m.gguf", model, tensors))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_role_is_the_same_from_both_files(tmp_path: Path, name: str) -> None:
    hf, quantized = both(tmp_path, name)
    for role in roles(hf.spec):
        mine, other = hf.source.tensor(role), quantized.source.tensor(role)
        assert mine.shape == other.shape == role_shape(hf.spec, role)
        np.testing.assert_array_equal(mine.float32(), other.float32(), err_msg=str(role))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_role_has_values_of_its_own(tmp_path: Path, name: str) -> None:
    """No two roles read the same rows: a wrong row range or expert index would repeat some."""
    hf, _ = both(tmp_path, name)
    first_rows = [
        hf.source.tensor(role).float32().reshape(-1)[:8].tobytes() for role in roles(hf.spec)
    ]
    assert len(set(first_rows)) == len(first_rows)


def test_llama_rows_come_back_from_pairs(tmp_path: Path) -> None:
    model = MODELS["llama"]
    tensors = model_files.weights(model)
    _, file = both(tmp_path, "llama")
    stored = file.tensors["blk.1.attn_k.weight"].rows().view(np.float32)
    hf = tensors["model.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(stored, interleave(hf, model_files.KV_HEADS))
    assert not np.array_equal(stored, hf)
    view = file.source.tensor(Role("k", 1))
    np.testing.assert_array_equal(view.float32(3, 29), hf[3:29])
    np.testing.assert_array_equal(view.raw(3, 29).data, hf[3:29].view(np.uint8))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_permuted_blocks_are_moved_not_requantized(tmp_path: Path, kind: str) -> None:
    model = MODELS["llama"]
    tensors = model_files.weights(model)
    quant = gguf.GGMLQuantizationType[kind]
    path = model_files.write_gguf(tmp_path / "q.gguf", model, tensors, lambda *_: quant)
    with open_model(path) as file:
        for role, name in ((Role("q", 0), "q"), (Role("k", 0), "k"), (Role("v", 0), "v")):
            hf = tensors[f"model.layers.0.self_attn.{name}_proj.weight"]
            expected = gguf.dequantize(gguf.quantize(hf, quant), quant)
            view = file.source.tensor(role)
            np.testing.assert_array_equal(view.float32(), expected)
            np.testing.assert_array_equal(view.quantized(5, 17).dequantize(), expected[5:17])
            assert view.raw(0, 1).type == kind


def test_gemma_norms_are_factors_from_both(tmp_path: Path) -> None:
    tensors = model_files.weights(MODELS["gemma3"])
    hf, file = both(tmp_path, "gemma3")
    expected = tensors["model.layers.0.self_attn.q_norm.weight"] + np.float32(1)
    for source in (hf.source, file.source):
        np.testing.assert_array_equal(source.tensor(Role("q_norm", 0)).float32(), expected)
    with pytest.raises(InternalError, match="constant to add"):
        hf.source.tensor(Role("final_norm")).raw(0, 1)


def test_rope_factors_of_a_gguf_reach_the_spec(tmp_path: Path) -> None:
    _, file = both(tmp_path, "llama")
    scaling = file.spec.layers[0].attention.rope.scaling
    assert scaling is not None
    assert scaling.kind == "llama3"
    assert scaling.short_factor == MODELS["llama"].rope_factors


def test_phi3_parts_are_rows_of_the_fused_tensors(tmp_path: Path) -> None:
    tensors = model_files.weights(MODELS["phi3"])
    hf, _ = both(tmp_path, "phi3")
    fused = tensors["model.layers.0.self_attn.qkv_proj.weight"]
    q, kv = 64, 32
    parts = {"q": fused[:q], "k": fused[q : q + kv], "v": fused[q + kv :]}
    for part, expected in parts.items():
        view = hf.source.tensor(Role(part, 0))  # type: ignore[arg-type]
        np.testing.assert_array_equal(view.float32(), expected)
        np.testing.assert_array_equal(view.raw(2, 5).data, expected[2:5].view(np.uint8))
    up = tensors["model.layers.1.mlp.gate_up_proj.weight"][model_files.INTER :]
    np.testing.assert_array_equal(hf.source.tensor(Role("up", 1)).float32(), up)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_slices_of_a_stacked_tensor(tmp_path: Path, name: str) -> None:
    hf, file = both(tmp_path, name)
    stored = file.tensors["blk.1.ffn_down_exps.weight"]
    assert stored.shape == (model_files.EXPERTS, model_files.HIDDEN, model_files.INTER)
    stack = stored.rows().view(np.float32).reshape(stored.shape)
    view = file.source.tensor(Role("down", 1, 2))
    np.testing.assert_array_equal(view.float32(), stack[2])
    np.testing.assert_array_equal(hf.source.tensor(Role("down", 1, 2)).float32(), stack[2])


def test_biases_and_a_tied_head(tmp_path: Path) -> None:
    hf, file = both(tmp_path, "qwen2")
    for model in (hf, file):
        assert model.spec.tied_head
        assert model.spec.layers[0].attention.qkv_bias
        assert not model.source.has(Role("q_norm", 0))
        head, embed = (model.source.tensor(Role(part)) for part in ("head", "embed"))  # type: ignore[arg-type]
        assert head.stored is embed.stored


def test_half_precision_weights_keep_their_format(tmp_path: Path) -> None:
    model = MODELS["qwen3"]
    tensors = model_files.weights(model)
    halves = {name: t.astype(ml_dtypes.bfloat16) for name, t in tensors.items()}
    directory = model_files.write_hf(tmp_path / "hf", model, tensors)
    write_safetensors(directory / "model.safetensors", halves)
    with open_model(directory) as opened:
        view = opened.source.tensor(Role("down", 0))
        name = "model.layers.0.mlp.down_proj.weight"
        assert str(view.format) == "bf16"
        assert view.raw(0, 2).type == "BF16"
        np.testing.assert_array_equal(view.float32(), halves[name].astype(np.float32))
        np.testing.assert_array_equal(view.quantized(1, 3).codes, halves[name][1:3])
        assert "BF16 100%" in opened.source.describe()


def test_drop_keeps_the_values(tmp_path: Path) -> None:
    _, file = both(tmp_path, "mixtral")
    view = file.source.tensor(Role("gate", 0, 1))
    before = view.float32()
    view.drop()
    np.testing.assert_array_equal(view.float32(), before)


def test_rows_out_of_range_are_our_own_bug(tmp_path: Path) -> None:
    hf, _ = both(tmp_path, "qwen3")
    with pytest.raises(InternalError, match=r"rows 60\.\.65"):
        hf.source.tensor(Role("q", 0)).raw(60, 65)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model = MODELS["llama"]
    tensors = model_files.weights(model)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(
        ModelFileError, match=r"no tensor 'model.layers.1.mlp.up_proj.weight' \(layer 1 up\)"
    ):
        open_model(model_files.write_hf(tmp_path / "hf", model, tensors))


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = MODELS["llama"]
    tensors = model_files.weights(model)
    tensors["model.layers.0.self_attn.v_proj.weight"] = np.zeros((31, 64), np.float32)
    with pytest.raises(ModelFileError, match=r"v_proj.weight' \(layer 0 v\) is F32 \[31, 64\]"):
        open_model(model_files.write_hf(tmp_path / "hf", model, tensors))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "extra.weight"])
def test_a_tensor_that_nothing_reads_is_refused(tmp_path: Path, name: str) -> None:
    """An unread bias would change the numbers without a word."""
    model = MODELS["llama"]
    tensors = model_files.weights(model) | {name: np.zeros(64, np.float32)}
    with pytest.raises(ModelFileError, match=name):
        open_model(model_files.write_hf(tmp_path / "hf", model, tensors))


def test_rope_tables_of_old_files_are_left_alone(tmp_path: Path) -> None:
    model = MODELS["llama"]
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}
    tensors = model_files.weights(model) | extra
    with open_model(model_files.write_hf(tmp_path / "hf", model, tensors)) as opened:
        assert opened.spec.hidden == model_files.HIDDEN


def test_integer_weights_are_refused_when_read(tmp_path: Path) -> None:
    model = MODELS["llama"]
    tensors = model_files.weights(model)
    directory = model_files.write_hf(tmp_path / "hf", model, tensors)
    odd = {**tensors, "model.norm.weight": np.zeros(64, np.int64)}
    write_safetensors(directory / "model.safetensors", odd)
    with open_model(directory) as opened, pytest.raises(UnsupportedError, match="I64"):
        opened.source.tensor(Role("final_norm")).float32()
