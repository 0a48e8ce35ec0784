"""Qwen 2 and 2.5: Llama with biases on q, k and v; upper layers may slide."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec
from octavo.spec.naming import StandardTensors
from octavo.spec.rope_config import gguf_rope, hf_rope
from octavo.spec.sizes import gguf_sizes, hf_activation, hf_sizes, hf_windows


class Qwen2(StandardTensors):
    """Biases on q, k and v, none on o."""

    name: ClassVar[str] = "qwen2"
    architectures: ClassVar[tuple[str, ...]] = ("Qwen2ForCausalLM",)
    gguf_architectures: ClassVar[tuple[str, ...]] = ("qwen2",)

    def from_hf(self, config: ConfigReader) -> DecoderSpec:
        sizes = hf_sizes(config)
        attention = replace(sizes.attention(hf_rope(config, sizes)), qkv_bias=True)
        mlp = DenseMlp(sizes.intermediate, hf_activation(config))
        windows = qwen_windows(config, sizes.layers)
        layers = tuple(LayerSpec(replace(attention, window=window), mlp) for window in windows)
        return sizes.decoder(self.name, layers)

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        sizes = gguf_sizes(config)
        bias = config.bool_("qkv_bias", True)
        attention = replace(sizes.attention(gguf_rope(config, sizes)), qkv_bias=bias)
        layer = LayerSpec(attention, DenseMlp(sizes.intermediate))
        return sizes.decoder(self.name, (layer,) * sizes.layers)


def qwen_windows(config: ConfigReader, layers: int) -> tuple[int | None, ...]:
    """With use_sliding_window, layers from max_window_layers on slide."""
    window = config.int_or_none("sliding_window", 4096)
    if not config.bool_("use_sliding_window", False):
        window = None
    first = config.int_("max_window_layers", 28, low=0)
    return hf_windows(config, layers, window, tuple(i >= first for i in range(layers)))
