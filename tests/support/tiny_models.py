"""Tiny random transformers models of every family, made the same way every time.

Small enough for a test, but with every trait of the family: windows shorter than the texts,
grouped queries, a head size that isn't hidden / heads, softcaps, biases that aren't zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "mixtral",
    "qwen3_moe",
)
VOCAB = 256
WINDOW = 9

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8],
    "long_factor": [1.0, 1.3, 1.7, 2.1, 2.6, 3.2, 4.0, 5.0],
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# What a family adds to the common sizes: (name of its config class, its own keys).
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": _LLAMA3}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW, "head_dim": 32}),
    "qwen2": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 32,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": (
        "Phi3Config",
        {
            "rope_parameters": _LONGROPE,
            "original_max_position_embeddings": 16,
            "sliding_window": WINDOW,
        },
    ),
    "mixtral": (
        "MixtralConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 32,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
        },
    ),
}


def tiny_config(family: str, **changes: Any) -> Any:
    """The family's transformers config, with `changes` to it."""
    import transformers

    kind, own = _OWN[family]
    config = getattr(transformers, kind)(**{**_COMMON, **own, **changes})
    config._attn_implementation = "eager"  # the only one that applies softcaps
    return config


def tiny_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A seeded random transformers model (fp32, eval mode); biases and norms are random too."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.float().eval()


def save_tiny(family: str, path: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes a Hugging Face directory (config.json, model.safetensors) and returns its path."""
    tiny_model(family, seed, **changes).save_pretrained(path, safe_serialization=True)
    return path
