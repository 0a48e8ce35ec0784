"""Qwen 3: norms on q and k, a head size of its own, no biases."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec
from octavo.spec.families.qwen2 import qwen_windows
from octavo.spec.naming import StandardTensors
from octavo.spec.rope_config import gguf_rope, hf_rope
from octavo.spec.sizes import gguf_sizes, hf_activation, hf_sizes


class Qwen3(StandardTensors):
    """RMS norms over each head's q and k before rope."""

    name: ClassVar[str] = "qwen3"
    architectures: ClassVar[tuple[str, ...]] = ("Qwen3ForCausalLM",)
    gguf_architectures: ClassVar[tuple[str, ...]] = ("qwen3",)

    def from_hf(self, config: ConfigReader) -> DecoderSpec:
        sizes = hf_sizes(config, head_dim=128)
        bias = config.bool_("attention_bias", False)
        rope = hf_rope(config, sizes)
        attention = replace(sizes.attention(rope), qk_norm=True, qkv_bias=bias, out_bias=bias)
        mlp = DenseMlp(sizes.intermediate, hf_activation(config))
        windows = qwen_windows(config, sizes.layers)
        layers = tuple(LayerSpec(replace(attention, window=window), mlp) for window in windows)
        return sizes.decoder(self.name, layers)

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        sizes = gguf_sizes(config)
        bias = config.bool_("qkv_bias", False)
        rope = gguf_rope(config, sizes)
        attention = replace(sizes.attention(rope), qk_norm=True, qkv_bias=bias)
        layer = LayerSpec(attention, DenseMlp(sizes.intermediate))
        return sizes.decoder(self.name, (layer,) * sizes.layers)
