"""`octavo inspect`: figures that add up to the file, and text that can't steer the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from click.testing import CliRunner

from octavo.cli.inspect import command
from support import model_files
from support.model_files import MODELS

Q8 = gguf.GGMLQuantizationType.Q8_0


def inspect_json(path: Path) -> dict[str, Any]:
    result = CliRunner().invoke(command, [str(path), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def made(tmp_path: Path, name: str) -> Path:
    model = MODELS[name]
    path = tmp_path / "m.gguf"
    return model_files.write_gguf(path, model, model_files.weights(model), lambda *_: Q8)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_tensors_add_up(tmp_path: Path, name: str) -> None:
    report = inspect_json(made(tmp_path, name))
    stored = sum(line["bytes"] for line in report["formats"])
    rope = 4 * len(MODELS[name].rope_factors)
    assert sum(t["bytes"] for t in report["tensors"]) == stored - rope
    assert stored < report["file_bytes"]
    elements = sum(line["parameters"] for line in report["formats"])
    assert report["parameters"] == elements - len(MODELS[name].rope_factors)
    assert report["kind"] == "gguf"


def test_a_tied_model_reads_everything_per_token(tmp_path: Path) -> None:
    report = inspect_json(made(tmp_path, "qwen2"))
    assert report["bytes_per_token"] == sum(t["bytes"] for t in report["tensors"])
    assert report["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2  # layers, K and V, heads, width, bf16


def test_an_untied_model_reads_one_row_of_its_embedding(tmp_path: Path) -> None:
    report = inspect_json(made(tmp_path, "qwen3"))
    embedding = next(t["bytes"] for t in report["tensors"] if t["part"] == "embed")
    total = sum(t["bytes"] for t in report["tensors"])
    assert report["bytes_per_token"] == total - embedding + embedding // model_files.VOCAB


def test_experts_are_read_by_their_share(tmp_path: Path) -> None:
    report = inspect_json(made(tmp_path, "mixtral"))
    expert = next(t for t in report["tensors"] if t["expert"] == 1)
    assert expert["read_bytes"] == pytest.approx(expert["bytes"] * 2 / 3)
    assert expert["role"] == "layer 0 gate of expert 1"


def test_the_text_names_spec_formats_and_parts(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(made(tmp_path, "gemma3"))], catch_exceptions=False)
    for text in ("gemma3", "int8_g32", "Q8_0", "down", "mlp_post_norm", "2 layers see 8 tokens",
                 "40, head tied", "q and k norms"):  # fmt: skip
        assert text in result.output


def test_unread_keys_are_shown_and_cannot_steer_the_terminal(tmp_path: Path) -> None:
    model = MODELS["qwen3"]
    tensors = model_files.weights(model)
    directory = model_files.write_hf(tmp_path, model, tensors, **{"odd\x1b[2J[red]": 1})
    output = CliRunner().invoke(command, [str(directory)], catch_exceptions=False).output
    assert "keys that nothing reads: 'odd\\x1b[2J[red]'" in output
    assert "\x1b" not in output
    assert inspect_json(directory)["unread_keys"] == ["odd\x1b[2J[red]"]
