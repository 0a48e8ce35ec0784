"""`octavo fit`: figures worked out by hand, from a config alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from octavo.cli.fit import command
from octavo.cli.footprint import footprint, kv_bytes, longest_context
from octavo.cli.sizes import SizeType
from octavo.core.errors import RequestError
from octavo.io.checkpoint import read_header
from support import model_files
from support.model_files import MODELS

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80,
    "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip
PARAMETERS_70B = 70_553_706_496  # as its authors' checkpoint has them


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_70B))
    return path


def fit_json(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(command, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["format"]: row for row in report["rows"]}


def test_a_70b_takes_141_gb_at_16_bits_and_17_6_at_2(config: Path) -> None:
    report = fit_json(str(config), "--memory", "24GB", "--bandwidth", "1008GB/s")
    assert report["parameters"] == PARAMETERS_70B
    assert round(rows(report)["bf16"]["weights"] / 1e9) == 141
    assert round(rows(report)["int2_g32"]["weights"] / 1e9, 1) == 17.6
    text = CliRunner().invoke(command, [str(config), "--memory", "24GB"]).output
    assert "141.1 GB" in text
    assert "17.6 GB" in text


def test_figures_of_a_row(config: Path) -> None:
    report = fit_json(
        str(config), "--memory", "48GB", "--bandwidth", "1008GB/s", "--context", "4096"
    )
    row = rows(report)["int4_g32"]
    norms = 161 * 8192
    matrices = PARAMETERS_70B - norms
    total = matrices * 4.5 / 8 + norms * 4
    assert row["weights"] == PARAMETERS_70B / 2
    assert row["weights"] + row["scales"] == total
    assert row["kv"] == 80 * 2 * 8 * 128 * 2 * 4096
    assert row["total"] == total + row["kv"]
    assert row["fits"]
    # One row of the embedding is read, at 4 bits a weight; the rest is read whole.
    read = total - 128256 * 8192 * 4.5 / 8 + 8192 / 2
    assert row["bytes_per_token"] == pytest.approx(read, rel=1e-12)
    assert row["tokens_per_second"] == pytest.approx(1008e9 / read, rel=1e-12)
    assert row["tokens_per_second_at_context"] == pytest.approx(
        1008e9 / (read + row["kv"]), rel=1e-12
    )


def test_the_longest_context_is_the_last_that_fits(config: Path) -> None:
    spec = read_header(config).spec
    for free in (0, 327_679, 327_680, 10**9):
        longest = longest_context(spec, free)
        assert kv_bytes(spec, longest) <= free
        assert kv_bytes(spec, longest + 1) > free
    assert longest_context(spec, 1e15) == 8192
    assert longest_context(spec, -1) == 0


def test_window_layers_keep_their_window_only(tmp_path: Path) -> None:
    model = MODELS["gemma3"]
    path = model_files.write_gguf(tmp_path / "m.gguf", model, model_files.weights(model))
    spec = read_header(path).spec
    row = 2 * model_files.KV_HEADS * model_files.HEAD_DIM * 2
    assert all(layer.attention.window == 8 for layer in spec.layers)
    assert kv_bytes(spec, 5) == 2 * 5 * row
    assert kv_bytes(spec, 100) == 2 * 8 * row


def test_a_token_reads_its_experts_only(tmp_path: Path) -> None:
    model = MODELS["qwen3_moe"]
    directory = model_files.write_hf(tmp_path, model, model_files.weights(model))
    counted = footprint(read_header(directory).spec)
    expert = model_files.INTER * model_files.HIDDEN
    read = sum(m.read * m.shape[0] * m.shape[1] for m in counted.matrices)
    held = sum(m.held * m.shape[0] * m.shape[1] for m in counted.matrices)
    embedding = model_files.VOCAB * model_files.HIDDEN
    unread = model_files.LAYERS * 3 * (model_files.EXPERTS - 2) * expert
    assert read == pytest.approx(held - unread - embedding)


def test_formats_that_a_shape_cannot_take_are_listed_with_the_reason(tmp_path: Path) -> None:
    odd = {**LLAMA_70B, "intermediate_size": 28680}
    (tmp_path / "config.json").write_text(json.dumps(odd))
    report = fit_json(str(tmp_path), "--memory", "1TB")
    assert set(rows(report)) == {"fp32", "bf16"}
    refused = dict(report["impossible"])
    assert "28680" in refused["int4_g32"]


def test_this_machines_memory_is_the_default(config: Path) -> None:
    assert fit_json(str(config))["memory"] > 1 << 28
    assert fit_json(str(config))["bandwidth"] is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("24GB", 24e9), ("24 gb", 24e9), ("1.5TiB", 1.5 * 2**40), ("800M", 8e8), ("512", 512)],
)
def test_sizes_are_read(text: str, value: float) -> None:
    assert SizeType(rate=False).convert(text, None, None) == value


@pytest.mark.parametrize("text", ["", "0", "-1GB", "GB", "24XB", "1e9", "24GB/s", "9" * 30, "24i"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no positive size such as 24GB"):
        SizeType(rate=False).convert(text, None, None)


def test_rates_are_read() -> None:
    assert SizeType(rate=True).convert("1008GB/s", None, None) == 1008e9
    assert SizeType(rate=True).convert("25.6GiB", None, None) == 25.6 * 2**30


def test_a_context_beyond_the_model_is_refused(config: Path) -> None:
    with pytest.raises(RequestError, match="8192 positions"):
        CliRunner().invoke(command, [str(config), "--context", "9000"], catch_exceptions=False)
