"""Header keys of a GGUF file for a spec: what the family reads from them gives it back.

The inverse of `Family.from_gguf`, checked by running it: a spec that a header can't say (a window
on Qwen 2, dense layers among experts) is refused, never bent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from octavo.core.errors import ConfigError, UnsupportedError
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec, MoeMlp, RopeSpec
from octavo.spec.rope import attention_factor, inverse_frequencies
from octavo.spec.table import FAMILIES, family_for_gguf

Keys = dict[str, int | float | str]
Factors = dict[str, tuple[float, ...]]

_SPOKEN = {"mistral": "llama", "mixtral": "llama"}  # what such files call themselves
_SWA_PERIODS = 64


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of its decoder.

    keys     without the architecture's prefix
    factors  contents of rope_freqs.weight and the like, by tensor name
    spec     the spec as it will be read: of the architecture's own family
    """

    architecture: str
    keys: Mapping[str, int | float | str]
    factors: Mapping[str, tuple[float, ...]]
    spec: DecoderSpec


def gguf_header(spec: DecoderSpec) -> GgufHeader:
    """The header of `spec`. Raises UnsupportedError, naming what no header can say.

    Numbers are rounded to fp32, as files have them.
    """
    entry = next(entry for entry in FAMILIES if entry.module == spec.family)
    architecture = _SPOKEN.get(spec.family) or entry.gguf[0]
    family = family_for_gguf(architecture)
    said = replace(spec, family=family.name, layers=tuple(map(_said, spec.layers)))
    keys, factors = _keys(said), _factors(said)
    reader = ConfigReader({**keys, **_facts(said, factors)}, f"a header for {spec.family}")
    try:
        again = family.from_gguf(reader)
    except ConfigError as error:
        raise UnsupportedError(f"{error}: export to hf instead") from error
    if _rounded(again) != _rounded(said):
        raise UnsupportedError(
            f"no GGUF header of architecture {architecture} says what this model is: "
            f"{_difference(said, again)}. Export to hf instead."
        )
    return GgufHeader(architecture, keys, factors, again)


def _said(layer: LayerSpec) -> LayerSpec:
    attention = layer.attention
    return replace(layer, attention=replace(attention, rope=_said_rope(attention.rope)))


def _said_rope(rope: RopeSpec) -> RopeSpec:
    """Scalings as files have them: llama3's frequencies as factors, longrope's own attention
    factor written out."""
    scaling = rope.scaling
    if scaling is None:
        return rope
    if scaling.kind == "longrope":
        return replace(rope, scaling=replace(scaling, attention_factor=attention_factor(rope)))
    if scaling.kind != "llama3" or scaling.short_factor:
        return rope
    plain = inverse_frequencies(replace(rope, scaling=None), 0)
    factors = tuple((plain / inverse_frequencies(rope, 0)).tolist())
    return replace(rope, scaling=type(scaling)("llama3", short_factor=factors))


def _keys(spec: DecoderSpec) -> Keys:
    full = _full_layer(spec)
    attention, mlp = full.attention, full.mlp
    keys: Keys = {
        "block_count": len(spec.layers),
        "context_length": spec.max_positions,
        "embedding_length": spec.hidden,
        "feed_forward_length": mlp.intermediate,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": _fp32(spec.norm_eps),
        "vocab_size": spec.vocab,
        **_rope_keys(attention.rope),
    }
    if isinstance(mlp, MoeMlp):
        keys |= {"expert_count": mlp.experts, "expert_used_count": mlp.top_k}
        if spec.family == "qwen3_moe":
            keys |= {"expert_feed_forward_length": mlp.intermediate}
            keys |= {} if mlp.normalize_top_k else {"expert_weights_norm": False}
    return keys | _window_keys(spec) | _softcap_keys(spec)


def _full_layer(spec: DecoderSpec) -> LayerSpec:
    """A layer that sees the whole context where there is one: its rope is the model's own."""
    return next((layer for layer in spec.layers if layer.attention.window is None), spec.layers[0])


def _rope_keys(rope: RopeSpec) -> Keys:
    keys: Keys = {"rope.dimension_count": rope.dim, "rope.freq_base": _fp32(rope.theta)}
    scaling = rope.scaling
    if scaling is None or scaling.kind == "llama3":
        return keys
    original = {"rope.scaling.original_context_length": scaling.original_max_positions}
    if scaling.kind == "longrope":
        return keys | original | {"rope.scaling.attn_factor": _fp32(attention_factor(rope))}
    keys |= original | {"rope.scaling.factor": _fp32(scaling.factor)}
    if scaling.kind == "yarn":
        keys |= {"rope.scaling.yarn_beta_fast": _fp32(scaling.beta_fast)}
        keys |= {"rope.scaling.yarn_beta_slow": _fp32(scaling.beta_slow)}
    return {**keys, "rope.scaling.type": scaling.kind}


def _window_keys(spec: DecoderSpec) -> Keys:
    sliding = [layer.attention for layer in spec.layers if layer.attention.window is not None]
    if not sliding or sliding[0].window is None or spec.family == "llama":
        return {}
    keys: Keys = {"attention.sliding_window": sliding[0].window}
    if spec.family == "gemma3":
        slides = [layer.attention.window is not None for layer in spec.layers]
        keys["rope.freq_base_swa"] = _fp32(sliding[0].rope.theta)
        keys["attention.sliding_window_pattern"] = _period(slides)
    return keys


def _period(slides: list[bool]) -> int:
    """Every how many layers one sees all; the reader's check refuses other patterns."""
    fits = (p for p in (6, *range(2, _SWA_PERIODS))
            if slides == [(i + 1) % p != 0 for i in range(len(slides))])  # fmt: skip
    return next(fits, 6)


def _softcap_keys(spec: DecoderSpec) -> Keys:
    caps = {
        "attn_logit_softcapping": spec.layers[0].attention.softcap,
        "final_logit_softcapping": spec.logit_softcap,
    }
    return {key: _fp32(cap) for key, cap in caps.items() if cap is not None}


def _factors(spec: DecoderSpec) -> Factors:
    scaling = _full_layer(spec).attention.rope.scaling
    if scaling is None or not scaling.short_factor:
        return {}
    if scaling.kind == "llama3":
        return {"rope_freqs.weight": scaling.short_factor}
    return {
        "rope_factors_short.weight": scaling.short_factor,
        "rope_factors_long.weight": scaling.long_factor,
    }


def _facts(spec: DecoderSpec, factors: Factors) -> dict[str, object]:
    """What `gguf_source.gguf_config` reads off the tensors."""
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    facts: dict[str, object] = {
        "tied_head": spec.tied_head,
        "qkv_bias": attention.qkv_bias,
        "out_bias": attention.out_bias,
        "qk_norm": attention.qk_norm,
        "mlp_bias": isinstance(mlp, DenseMlp) and mlp.bias,
    }
    names = {"rope_freqs.weight": "rope_factors"}
    for tensor, values in factors.items():
        found = np.array(values, np.float32).tolist()
        facts[names.get(tensor) or tensor.removesuffix(".weight")] = found
    return facts


def _fp32(value: float) -> float:
    return float(np.float32(value))


def _rounded(value: Any) -> Any:
    """A spec with its numbers in fp32. What longrope's factor is for is written out."""
    if isinstance(value, float):
        return _fp32(value)
    if isinstance(value, tuple):
        return tuple(map(_rounded, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    parts = {field.name: _rounded(getattr(value, field.name)) for field in fields(value)}
    if parts.get("kind") == "longrope":
        parts["factor"] = 1.0
    return replace(value, **parts)


def _difference(spec: DecoderSpec, again: DecoderSpec) -> str:
    for field in fields(DecoderSpec):
        ours, theirs = _rounded(getattr(spec, field.name)), _rounded(getattr(again, field.name))
        if field.name == "layers" and ours != theirs and len(ours) == len(theirs):
            ours, theirs = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
        if ours != theirs:
            return f"{field.name} is {ours}, and would be read as {theirs}"
    return "nothing differs"
