"""`open_model` and `read_header`: what a model's own files say, and what they may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.errors import (
    ConfigError,
    InternalError,
    ModelFileError,
    UnsupportedError,
    UserError,
)
from octavo.io.checkpoint import open_model, read_header
from octavo.io.gguf_reader import open_gguf
from octavo.io.gguf_values import gguf_value
from octavo.io.gguf_writer import GgufTensor, write_gguf
from octavo.spec.decoder import Role
from support import model_files
from support.model_files import MODELS


def hf(tmp_path: Path, **changes: Any) -> Path:
    model = MODELS["qwen3"]
    return model_files.write_hf(tmp_path / "hf", model, model_files.weights(model), **changes)


def gguf_file(tmp_path: Path) -> Path:
    model = MODELS["qwen3"]
    return model_files.write_gguf(tmp_path / "m.gguf", model, model_files.weights(model))


def rewritten(path: Path, **changes: Any) -> Path:
    """A GGUF file with metadata values set, or removed where the change is None."""
    file = open_gguf(path)
    values = dict(file.metadata.typed())
    for key, value in changes.items():
        name = key.replace("__", ".")
        values.pop(name, None)
        if value is not None:
            values[name] = gguf_value(value)
    tensors = [GgufTensor(t.name, t.type, t.shape, [t.rows()]) for t in file.tensors.values()]
    write_gguf(path, values, tensors)
    return path


def test_a_directory_opens_with_all_that_its_files_say(tmp_path: Path) -> None:
    directory = hf(tmp_path, eos_token_id=2, made_up_key=1)
    generation = {"eos_token_id": [7, 2], "temperature": 0.6, "top_k": 20, "do_sample": True}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    with open_model(directory) as model:
        assert model.kind == "hf"
        assert model.spec.family == "qwen3"
        assert model.eos_ids == (7, 2)
        assert model.generation == {"temperature": 0.6, "top_k": 20}
        assert model.unread_keys == ("made_up_key",)
        assert model.metadata["made_up_key"] == 1
        assert model.file_size == (directory / "model.safetensors").stat().st_size
        assert str(directory) in model.source.describe()


def test_a_gguf_opens_with_all_that_its_header_says(tmp_path: Path) -> None:
    path = rewritten(gguf_file(tmp_path), general__sampling__temp=0.5, qwen3__odd_key=3)
    with open_model(path) as model:
        assert model.kind == "gguf"
        assert model.eos_ids == (2, 3)  # end of sequence, then end of turn
        assert model.generation == {"temperature": 0.5}
        assert model.unread_keys == ("odd_key",)
        assert model.metadata["general.architecture"] == "qwen3"
        assert model.file_size == path.stat().st_size


def test_specs_from_both_kinds_agree(tmp_path: Path) -> None:
    with open_model(hf(tmp_path)) as first, open_model(gguf_file(tmp_path)) as second:
        ours, theirs = first.spec, second.spec
        assert (ours.vocab, ours.hidden, ours.max_positions) == (
            theirs.vocab, theirs.hidden, theirs.max_positions,
        )  # fmt: skip
        assert ours.layers == theirs.layers
        assert np.float32(ours.norm_eps) == np.float32(theirs.norm_eps)


def test_a_closed_model_is_gone(tmp_path: Path) -> None:
    with open_model(gguf_file(tmp_path)) as model:
        view = model.source.tensor(Role("embed"))
        kept = view.raw(0, 1)
    assert kept.data.nbytes == 4 * model_files.HIDDEN
    with pytest.raises(InternalError, match="closed"):
        view.float32()


def test_a_header_needs_no_weights(tmp_path: Path) -> None:
    directory = hf(tmp_path)
    (directory / "model.safetensors").unlink()
    assert read_header(directory) == read_header(directory / "config.json")
    with pytest.raises(ModelFileError, match=r"no model\.safetensors"):
        open_model(directory)


def test_weights_of_an_unknown_tool_are_refused(tmp_path: Path) -> None:
    directory = hf(tmp_path, quantization_config={"quant_method": "quanto"})
    with pytest.raises(UnsupportedError, match=r"quantized as 'quanto'.*GGUF"):
        open_model(directory)


@pytest.mark.parametrize("names", [None, [], ["A", "B"], "LlamaForCausalLM", [1]])
def test_architectures_must_be_one_name(tmp_path: Path, names: object) -> None:
    with pytest.raises(ConfigError, match="architectures is"):
        open_model(hf(tmp_path, architectures=names))


def test_an_unknown_architecture_is_refused_by_both(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="Qwen9ForCausalLM"):
        open_model(hf(tmp_path, architectures=["Qwen9ForCausalLM"]))
    with pytest.raises(UnsupportedError, match="qwen9"):
        open_model(rewritten(gguf_file(tmp_path), general__architecture="qwen9"))


def test_a_gguf_without_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"general\.architecture is missing"):
        open_model(rewritten(gguf_file(tmp_path), general__architecture=None))


def test_a_vocabulary_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    write_gguf(path, {"general.architecture": gguf_value("llama")}, [])
    with pytest.raises(ModelFileError, match=r"token_embd\.weight.*whole language model"):
        open_model(path)


def test_a_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="one of 3 parts"):
        open_model(rewritten(gguf_file(tmp_path), split__count=3))


@pytest.mark.parametrize("value", ["2", [2, "3"], -1, [True], 1.5])
def test_end_tokens_must_be_ids(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="eos_token_id is"):
        open_model(hf(tmp_path, eos_token_id=value))


def test_no_sampling_is_suggested_by_a_model_that_does_not_sample(tmp_path: Path) -> None:
    directory = hf(tmp_path)
    path = directory / "generation_config.json"
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    assert read_header(directory).generation == {}
    path.write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(ConfigError, match="temperature is 'hot'"):
        read_header(directory)


def test_what_is_no_model_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        open_model(tmp_path)
    path = gguf_file(tmp_path)
    with pytest.raises(ModelFileError, match=str(path)):
        open_model(tmp_path)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ModelFileError, match="Name the directory"):
        open_model(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1, "a": 2}'])
def test_a_broken_config_is_refused(tmp_path: Path, content: str) -> None:
    directory = hf(tmp_path)
    (directory / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        open_model(directory)
