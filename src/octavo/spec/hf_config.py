"""A config.json for a spec that came from a GGUF header: what its family reads gives it back."""

from __future__ import annotations

from dataclasses import fields

from octavo.core.errors import ConfigError, UnsupportedError
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import (
    AttentionSpec,
    DecoderSpec,
    DenseMlp,
    LayerSpec,
    MoeMlp,
    RopeScaling,
    RopeSpec,
)
from octavo.spec.table import FAMILIES, family_for_hf

Config = dict[str, object]

_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def hf_config(spec: DecoderSpec) -> Config:
    """The keys of a config.json from which the family reads exactly `spec`.

    Raises UnsupportedError, naming the first field that differs, when no config can say it.
    """
    architecture = next(entry.hf[-1] for entry in FAMILIES if entry.module == spec.family)
    config = {"architectures": [architecture], "model_type": spec.family, **_keys(spec)}
    reader = ConfigReader(config, f"a config.json for this {spec.family} model")
    try:
        again = family_for_hf(architecture).from_hf(reader)
    except ConfigError as error:
        raise UnsupportedError(f"{error}: start from the model's Hugging Face files") from error
    if again != spec:
        raise UnsupportedError(
            f"no config.json of the {spec.family} family says what this model's header says: "
            f"{_difference(spec, again)}. Start from the model's Hugging Face files."
        )
    return config


def _keys(spec: DecoderSpec) -> Config:
    """Sizes and rope of every family; some families add their own."""
    first = _full_layer(spec)
    attention, mlp = first.attention, first.mlp
    keys: Config = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": mlp.intermediate,
        "rms_norm_eps": spec.norm_eps,
        "max_position_embeddings": spec.max_positions,
        "tie_word_embeddings": spec.tied_head,
        "hidden_act": _ACTIVATIONS[mlp.activation],
        "rope_parameters": _rope(attention.rope, attention.head_dim),
    }
    if isinstance(mlp, MoeMlp):
        keys |= _experts(mlp)
    if spec.family.startswith("gemma"):
        return keys | _gemma(spec, attention)
    if spec.family in ("llama", "qwen3"):
        keys["attention_bias"] = attention.qkv_bias
    if spec.family == "llama":
        keys["mlp_bias"] = isinstance(mlp, DenseMlp) and mlp.bias
    return keys | ({"sliding_window": attention.window} if spec.family == "phi3" else {})


def _full_layer(spec: DecoderSpec) -> LayerSpec:
    """A layer that sees the whole context where there is one: its rope is the model's own."""
    return next((layer for layer in spec.layers if layer.attention.window is None), spec.layers[0])


def _experts(mlp: MoeMlp) -> Config:
    return {
        "num_experts": mlp.experts,
        "num_experts_per_tok": mlp.top_k,
        "moe_intermediate_size": mlp.intermediate,
        "norm_topk_prob": mlp.normalize_top_k,
    }


def _gemma(spec: DecoderSpec, full: AttentionSpec) -> Config:
    sliding = next((x.attention for x in spec.layers if x.attention.window is not None), full)
    keys: Config = {
        "hidden_activation": _ACTIVATIONS[spec.layers[0].mlp.activation],
        "attention_bias": full.qkv_bias,
        "query_pre_attn_scalar": _inverse_square(full.scale, spec),
        "attn_logit_softcapping": full.softcap,
        "final_logit_softcapping": spec.logit_softcap,
        "sliding_window": sliding.window,
        "layer_types": [
            "full_attention" if layer.attention.window is None else "sliding_attention"
            for layer in spec.layers
        ],
    }
    if spec.family == "gemma3":
        keys["rope_parameters"] = {
            "full_attention": _rope(full.rope, full.head_dim),
            "sliding_attention": _rope(sliding.rope, full.head_dim),
        }
    return keys


def _inverse_square(scale: float, spec: DecoderSpec) -> float:
    """The number whose -0.5th power is `scale` to the last bit; the usual ones are tried first."""
    attention = spec.layers[0].attention
    likely = (attention.head_dim, spec.hidden / attention.heads, round(scale**-2))
    return next((float(x) for x in likely if x**-0.5 == scale), scale**-2)


def _rope(rope: RopeSpec, head_dim: int) -> Config:
    keys: Config = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.dim != head_dim:
        keys["partial_rotary_factor"] = rope.dim / head_dim
    return keys if rope.scaling is None else keys | _scaling(rope.scaling)


def _scaling(scaling: RopeScaling) -> Config:
    kind = scaling.kind
    if kind == "llama3" and scaling.short_factor:
        return {"rope_type": kind, "rope_factors": list(scaling.short_factor)}
    keys: Config = {
        "rope_type": kind,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }
    if kind in ("yarn", "longrope"):
        keys["attention_factor"] = scaling.attention_factor
    if kind == "yarn":
        keys |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        keys["truncate"] = scaling.truncate
    if kind == "longrope":
        keys |= {"short_factor": list(scaling.short_factor)}
        keys |= {"long_factor": list(scaling.long_factor)}
    return keys


def _difference(spec: DecoderSpec, again: DecoderSpec) -> str:
    for field in fields(DecoderSpec):
        ours, theirs = getattr(spec, field.name), getattr(again, field.name)
        if field.name == "layers" and ours != theirs and len(ours) == len(theirs):
            ours, theirs = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
        if ours != theirs:
            return f"{field.name} is {ours}, and would be read as {theirs}"
    return "nothing differs"
