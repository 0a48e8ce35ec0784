"""Configs written for GGUF models: the family reads the same spec, or they are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo.core.errors import UnsupportedError
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec
from octavo.spec.hf_config import hf_config
from octavo.spec.table import family_for_gguf, family_for_hf

SIZES: dict[str, Any] = {
    "vocab_size": 512, "embedding_length": 64, "block_count": 6, "attention.head_count": 4,
    "attention.head_count_kv": 2, "attention.key_length": 16, "feed_forward_length": 96,
    "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)), "context_length": 4096,
    "tied_head": True, "rope.freq_base": float(np.float32(500000.7)),
    "qkv_bias": False, "out_bias": False, "mlp_bias": False, "qk_norm": False,
}  # fmt: skip
YARN = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 1024, "rope.scaling.yarn_beta_fast": 16.0,
}  # fmt: skip
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
FACTORS = [float(np.float32(x)) for x in (1, 1, 1.3, 2, 4.1, 8, 8, 8)]
LONG = {
    "rope_factors_short": FACTORS, "rope_factors_long": FACTORS[::-1],
    "rope.scaling.original_context_length": 1024, "rope.scaling.attn_factor": 1.1902,
}  # fmt: skip
GEMMA2 = {"attention.sliding_window": 48, "attn_logit_softcapping": 40.5}
HEADERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {}),
    ("llama", {"tied_head": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True}),
    ("llama", {"rope_factors": FACTORS}),
    ("llama", {"rope.dimension_count": 8}),
    ("llama", LINEAR),
    ("qwen2", {"qkv_bias": True, **YARN}),
    ("qwen3", {"attention.key_length": 32}),
    ("gemma2", GEMMA2),
    ("gemma2", {**GEMMA2, "block_count": 46, "attention.head_count": 4}),
    ("gemma3", {"attention.sliding_window": 32, **LINEAR}),
    ("gemma3", {"attention.sliding_window": 32, "block_count": 62, "embedding_length": 84}),
    ("phi3", {"attention.sliding_window": 100}),
    ("phi3", LONG),
    ("qwen3moe", {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}),
)


def spec_of(architecture: str, changes: dict[str, Any]) -> DecoderSpec:
    header = ConfigReader({**SIZES, **changes}, "model.gguf")
    return family_for_gguf(architecture).from_gguf(header)


@pytest.mark.parametrize(("architecture", "changes"), HEADERS)
def test_the_family_reads_the_same_spec_from_the_file(
    architecture: str, changes: dict[str, Any]
) -> None:
    spec = spec_of(architecture, changes)
    values = json.loads(json.dumps(hf_config(spec)))
    [name] = values["architectures"]
    reader = ConfigReader(values, "config.json")
    assert family_for_hf(name).from_hf(reader) == spec
    assert reader.unread() == ()


def test_what_no_config_can_say_is_refused_with_the_field() -> None:
    mixtral = spec_of("llama", {"expert_count": 4, "expert_used_count": 2})
    with pytest.raises(UnsupportedError, match="Hugging Face files"):
        hf_config(mixtral)
    odd = replace(spec_of("llama", {}), embed_scale=2.0)
    with pytest.raises(UnsupportedError, match=r"embed_scale is 2\.0, and would be read as 1\.0"):
        hf_config(odd)
