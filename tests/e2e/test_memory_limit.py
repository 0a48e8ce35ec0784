"""A process limited to 1 GB: too large a model is refused with advice, and runs in fewer bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from octavo.io.safetensors_file import write_safetensors
from support.small_models import talking_model

LIMIT = 1 << 30
WIDTH, LAYERS = 2048, 2
CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
from octavo.cli.main import main
sys.exit(main())
"""


def large_model(directory: Path) -> Path:
    """A model of some 200 million weights, 400 MB in bf16, with a tokenizer."""
    path = talking_model(directory)
    config = json.loads((path / "config.json").read_text())
    wide = 16 * WIDTH - 1024
    config |= {"hidden_size": WIDTH, "intermediate_size": wide // 2, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 16}
    config.pop("head_dim", None)
    (path / "config.json").write_text(json.dumps(config))
    block = (np.random.default_rng(0).standard_normal(1 << 16) / 45).astype(ml_dtypes.bfloat16)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return np.resize(block, (rows, columns))

    one, zero = np.ones(WIDTH, ml_dtypes.bfloat16), np.zeros(WIDTH, ml_dtypes.bfloat16)
    tensors = {"model.norm.weight": one,
               "model.embed_tokens.weight": matrix(config["vocab_size"], WIDTH)}  # fmt: skip
    for layer in range(LAYERS):
        here = f"model.layers.{layer}"
        tensors |= {f"{here}.{name}_layernorm.weight": one
                    for name in ("input", "post_attention")}  # fmt: skip
        tensors |= {f"{here}.self_attn.{p}_proj.weight": matrix(WIDTH, WIDTH) for p in "qkvo"}
        tensors |= {f"{here}.self_attn.{p}_proj.bias": zero for p in "qkv"}
        tensors |= {f"{here}.mlp.{p}_proj.weight": matrix(wide // 2, WIDTH) for p in ("gate", "up")}
        tensors[f"{here}.mlp.down_proj.weight"] = matrix(WIDTH, wide // 2)
    write_safetensors(path / "model.safetensors", tensors)
    return path


def run(model: Path, format: str) -> subprocess.CompletedProcess[str]:
    words = ["run", str(model), "a", "--format", format, "--max-tokens", "2", "--threads", "1"]
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(limit=LIMIT), *words, "--context", "64"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_too_large_in_bf16_and_fine_in_3_bits(tmp_path: Path) -> None:
    model = large_model(tmp_path / "m")
    assert (model / "model.safetensors").stat().st_size > 0.4e9
    refused = run(model, "bf16")
    assert refused.returncode == 2
    assert "are available; use --format int" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    done = run(model, "int3_g64")
    assert done.returncode == 0, done.stderr
