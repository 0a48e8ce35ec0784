"""Rope settings of a config: both spellings of Hugging Face configs, and GGUF keys."""

from __future__ import annotations

from collections.abc import Callable

from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import RopeScaling, RopeSpec
from octavo.spec.sizes import Sizes

_HF_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")
_GGUF_KINDS = ("none", "linear", "yarn", "longrope")


def hf_rope(config: ConfigReader, sizes: Sizes, theta: float = 10000.0) -> RopeSpec:
    """One rope for all layers. `theta` is the family's default.

    transformers 4 writes rope_theta and rope_scaling, transformers 5 one rope_parameters.
    """
    theta = config.float_("rope_theta", theta, low=1.0)
    partial = config.float_("partial_rotary_factor", 1.0)
    key = next((k for k in ("rope_parameters", "rope_scaling") if config.given(k)), None)
    config.ignore("rope_parameters", "rope_scaling")
    if key is None:
        config.ignore("original_max_position_embeddings")
        return RopeSpec(theta, _rotary_dim(config, sizes, partial))
    rope = config.sub(key)
    theta = rope.float_("rope_theta", theta, low=1.0)
    dim = _rotary_dim(rope, sizes, rope.float_("partial_rotary_factor", partial))
    original = config.int_or_none("original_max_position_embeddings", low=2)
    return RopeSpec(theta, dim, hf_scaling(rope, sizes.max_positions, original, dim))


def hf_layer_rope(nested: ConfigReader, kind: str, theta: float, sizes: Sizes) -> RopeSpec:
    """The rope of one layer type, where rope_parameters is nested by layer type."""
    if not nested.given(kind):
        nested.ignore(kind)
        return RopeSpec(theta, sizes.head_dim)
    rope = nested.sub(kind)
    scaling = hf_scaling(rope, sizes.max_positions, None, sizes.head_dim)
    return RopeSpec(rope.float_("rope_theta", theta, low=1.0), sizes.head_dim, scaling)


def hf_scaling(
    rope: ConfigReader, max_positions: int, original: int | None, dim: int
) -> RopeScaling | None:
    """The scaling of one rope mapping. `original` is the config's own, which wins over it."""
    kind = rope.choice("rope_type", _HF_KINDS, rope.choice("type", _HF_KINDS, "default"))
    rope.ignore("type")
    scaling = None
    if kind != "default":
        base = original or rope.int_("original_max_position_embeddings", max_positions, low=2)
        rope.ignore("original_max_position_embeddings")
        scaling = _SCALINGS[kind](rope, base, max_positions)
        _check_factors(rope, scaling, dim)
    rope.ignore("rope_theta", "original_max_position_embeddings")
    rope.expect_all_read()
    return scaling


def _linear(rope: ConfigReader, original: int, max_positions: int) -> RopeScaling:
    return RopeScaling("linear", rope.float_("factor"), original)


def _dynamic(rope: ConfigReader, original: int, max_positions: int) -> RopeScaling:
    return RopeScaling("dynamic", rope.float_("factor"), max_positions)


def _llama3(rope: ConfigReader, original: int, max_positions: int) -> RopeScaling:
    if rope.given("rope_factors"):  # ours, for a model from a GGUF file: all that such a file knows
        return RopeScaling("llama3", short_factor=rope.floats("rope_factors"))
    low, high = rope.float_("low_freq_factor"), rope.float_("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"a number above low_freq_factor ({low:g})")
    return RopeScaling(
        "llama3", rope.float_("factor"), original, low_freq_factor=low, high_freq_factor=high
    )


def _yarn(rope: ConfigReader, original: int, max_positions: int) -> RopeScaling:
    return RopeScaling(
        "yarn",
        rope.float_("factor", max_positions / original),
        original,
        attention_factor=rope.float_or_none("attention_factor"),
        beta_fast=rope.float_("beta_fast", 32.0),
        beta_slow=rope.float_("beta_slow", 1.0),
        mscale=rope.float_or_none("mscale"),
        mscale_all_dim=rope.float_or_none("mscale_all_dim"),
        truncate=rope.bool_("truncate", True),
    )


def _longrope(rope: ConfigReader, original: int, max_positions: int) -> RopeScaling:
    return RopeScaling(
        "longrope",
        rope.float_("factor", max_positions / original),
        original,
        attention_factor=rope.float_or_none("attention_factor"),
        short_factor=rope.floats("short_factor"),
        long_factor=rope.floats("long_factor"),
    )


_SCALINGS: dict[str, Callable[[ConfigReader, int, int], RopeScaling]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # Phi-3's first name for it
}


def gguf_rope(config: ConfigReader, sizes: Sizes) -> RopeSpec:
    """The rope of a GGUF header; llama3 and longrope arrive as tensors of factors."""
    dim = config.int_("rope.dimension_count", sizes.head_dim, high=sizes.head_dim)
    theta = config.float_("rope.freq_base", 10000.0, low=1.0)
    kind = config.choice("rope.scaling.type", _GGUF_KINDS, "none")
    original = config.int_("rope.scaling.original_context_length", sizes.max_positions)
    config.ignore("rope.scaling.finetuned")
    scaling: RopeScaling | None
    if config.given("rope_factors_long") or kind == "longrope":
        scaling = _gguf_longrope(config, sizes.max_positions, original)
    elif config.given("rope_factors"):
        scaling = RopeScaling("llama3", short_factor=config.floats("rope_factors"))
    else:
        scaling = _gguf_scaling(config, kind, original)
    if scaling is not None:
        _check_factors(config, scaling, dim)
    return RopeSpec(theta, dim, scaling)


def _gguf_longrope(config: ConfigReader, max_positions: int, original: int) -> RopeScaling:
    return RopeScaling(
        "longrope",
        config.float_("rope.scaling.factor", max_positions / original),
        original,
        attention_factor=config.float_or_none("rope.scaling.attn_factor"),
        short_factor=config.floats("rope_factors_short"),
        long_factor=config.floats("rope_factors_long"),
    )


def _gguf_scaling(config: ConfigReader, kind: str, original: int) -> RopeScaling | None:
    if kind == "none":
        config.ignore("rope.scaling.factor")
        return None
    config.expect("rope.scaling.attn_factor", 1.0)
    factor = config.float_("rope.scaling.factor")
    if kind == "linear":
        return RopeScaling("linear", factor, original)
    config.expect("rope.scaling.yarn_ext_factor", 1.0)
    config.expect("rope.scaling.yarn_attn_factor", 1.0)
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=config.float_("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=config.float_("rope.scaling.yarn_beta_slow", 1.0),
    )


def _rotary_dim(config: ConfigReader, sizes: Sizes, partial: float) -> int:
    dim = int(sizes.head_dim * partial)
    if partial > 1.0 or dim < 2 or dim % 2:
        raise config.error(
            "partial_rotary_factor", f"a share of head size {sizes.head_dim} that is even"
        )
    return dim


def _check_factors(config: ConfigReader, scaling: RopeScaling, dim: int) -> None:
    for key, factors in (("short", scaling.short_factor), ("long", scaling.long_factor)):
        if factors and len(factors) != dim // 2:
            names = (f"{key}_factor", f"rope_factors_{key}", "rope_factors")
            name = next(n for n in names if config.has(n))
            raise config.error(name, f"{dim // 2} numbers, one per rotated pair")
