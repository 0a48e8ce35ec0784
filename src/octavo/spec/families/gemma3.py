"""Gemma 3 (text): norms on q and k; five layers slide, with a rope of their own, then one sees all.

Only the rope of the full layers is scaled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import AttentionSpec, DecoderSpec, DenseMlp, LayerSpec, RopeSpec
from octavo.spec.families import gemma
from octavo.spec.rope_config import gguf_rope, hf_layer_rope, hf_rope
from octavo.spec.sizes import Sizes, gguf_sizes, hf_sizes, hf_windows


class Gemma3(gemma.GemmaTensors):
    """Window layers turn with theta 10,000, full layers with 1,000,000."""

    name: ClassVar[str] = "gemma3"
    architectures: ClassVar[tuple[str, ...]] = ("Gemma3ForCausalLM", "Gemma3TextForCausalLM")
    gguf_architectures: ClassVar[tuple[str, ...]] = ("gemma3",)

    def from_hf(self, config: ConfigReader) -> DecoderSpec:
        sizes = hf_sizes(config, tied=True, head_dim=256)
        full, local = _hf_ropes(config, sizes)
        base = gemma.hf_attention(config, sizes, full)
        cap = config.float_or_none("attn_logit_softcapping")
        attention = replace(base, qk_norm=True, softcap=cap)
        pattern = config.int_("sliding_window_pattern", config.int_("_sliding_window_pattern", 6))
        window = config.int_or_none("sliding_window", 4096)
        windows = hf_windows(config, sizes.layers, window, _slides(sizes.layers, pattern))
        layers = _layers(attention, local, gemma.hf_mlp(config, sizes), windows)
        final = config.float_or_none("final_logit_softcapping")
        return gemma.gemma_decoder(self.name, sizes, layers, final)

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        sizes = gguf_sizes(config)
        rope = gguf_rope(config, sizes)
        attention = replace(gemma.gguf_attention(sizes, rope, layers_27b=62), qk_norm=True)
        window = config.int_("attention.sliding_window")
        pattern = config.int_("attention.sliding_window_pattern", 6)
        local = RopeSpec(config.float_("rope.freq_base_swa", 10000.0), rope.dim)
        windows = tuple(window if slide else None for slide in _slides(sizes.layers, pattern))
        layers = _layers(attention, local, DenseMlp(sizes.intermediate, "gelu_tanh"), windows)
        final = config.float_or_none("final_logit_softcapping")
        return gemma.gemma_decoder(self.name, sizes, layers, final)


def _hf_ropes(config: ConfigReader, sizes: Sizes) -> tuple[RopeSpec, RopeSpec]:
    """Ropes of full and of sliding layers; transformers 5 nests them by layer type."""
    theta = config.float_("rope_local_base_freq", 10000.0)
    nested = config.sub("rope_parameters") if config.given("rope_parameters") else None
    if nested is None or not nested.has("full_attention"):
        return hf_rope(config, sizes, 1e6), RopeSpec(theta, sizes.head_dim)
    config.ignore("rope_theta", "rope_scaling")
    full = hf_layer_rope(nested, "full_attention", 1e6, sizes)
    return full, hf_layer_rope(nested, "sliding_attention", theta, sizes)


def _slides(layers: int, pattern: int) -> tuple[bool, ...]:
    return tuple((i + 1) % pattern != 0 for i in range(layers))


def _layers(
    full: AttentionSpec, local: RopeSpec, mlp: DenseMlp, windows: tuple[int | None, ...]
) -> tuple[LayerSpec, ...]:
    slide = replace(full, rope=local)
    return tuple(
        LayerSpec(full if w is None else replace(slide, window=w), mlp, True) for w in windows
    )
