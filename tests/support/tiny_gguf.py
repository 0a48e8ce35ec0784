"""Tiny models as a GGUF would hold them: header keys without prefix, and renamed tensors.

Written from llama.cpp's conversion rules, independently of how specs read them: names come from
the `gguf` package's own table, Llama's q and k rows are interleaved, Gemma's norms get their 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Tensors = dict[str, F32]

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "phi3": "phi3",
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
}
# What a GGUF can't say: dense layers among experts.
CHANGES: dict[str, dict[str, Any]] = {"qwen3_moe": {"mlp_only_layers": []}}
_PERMUTED = ("llama", "mixtral")
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_OPTIONAL = {
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_used_count": "num_experts_per_tok",
    "expert_count": "num_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def gguf_header(family: str, config: Any, tensors: Tensors) -> dict[str, object]:
    """What a ConfigReader of this file serves: keys without prefix, and facts off the tensors."""
    values = config.to_dict()
    header: dict[str, object] = {key: values[name] for key, name in _KEYS.items()}
    if "num_local_experts" in values:
        values["num_experts"] = values["num_local_experts"]
    for key, name in _OPTIONAL.items():
        if values.get(name) is not None:
            header[key] = values[name]
    rope = values["rope_parameters"]
    rope = rope.get("full_attention", rope)
    header["rope.freq_base"] = rope["rope_theta"]
    header["tied_head"] = "output.weight" not in tensors
    header["qkv_bias"] = "blk.0.attn_q.bias" in tensors
    header["qk_norm"] = "blk.0.attn_q_norm.weight" in tensors
    if rope["rope_type"] == "longrope":
        header["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        header["rope_factors_short"] = np.array(rope["short_factor"], np.float32)
        header["rope_factors_long"] = np.array(rope["long_factor"], np.float32)
    return header


def gguf_tensors(family: str, config: Any, tensors: Tensors) -> Tensors:
    """The checkpoint's tensors, renamed, permuted, stacked and summed as llama.cpp does."""
    names = _name_map(ARCHITECTURES[family], config.num_hidden_layers)
    found: Tensors = {}
    experts: dict[str, list[F32]] = {}
    for name, values in _in_expert_order(tensors):
        if ".experts." in name:
            head, tail = name.split(".experts.")
            merged = f"{head}.experts.{tail.split('.', 1)[1]}"
            experts.setdefault(names(merged), []).append(values)
            continue
        found[names(name)] = _converted(family, config, name, values)
    return found | {name: np.stack(values) for name, values in experts.items()}


def _in_expert_order(tensors: Tensors) -> list[tuple[str, F32]]:
    def key(item: tuple[str, F32]) -> tuple[str, int, str]:
        head, _, tail = item[0].partition(".experts.")
        return (head, int(tail.split(".")[0]) if tail else -1, tail)

    return sorted(tensors.items(), key=key)


def _converted(family: str, config: Any, name: str, values: F32) -> F32:
    if family.startswith("gemma") and "norm" in name:
        return values + np.float32(1)
    if family in _PERMUTED and ("q_proj" in name or "k_proj" in name):
        q = "q_proj" in name
        heads = config.num_attention_heads if q else config.num_key_value_heads
        halves = values.reshape(heads, 2, -1, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
    return values


def _name_map(architecture: str, layers: int) -> Any:
    import gguf

    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(arch, layers)

    def name_of(name: str) -> str:
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        return found if isinstance(found, str) else found[0]

    return name_of
