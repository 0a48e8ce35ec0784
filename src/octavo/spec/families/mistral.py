"""Mistral: Llama with a sliding window. Its GGUF files call themselves llama."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.core.errors import UnsupportedError
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec
from octavo.spec.naming import StandardTensors
from octavo.spec.rope_config import hf_rope
from octavo.spec.sizes import hf_activation, hf_sizes


class Mistral(StandardTensors):
    """Every layer sees the last `sliding_window` tokens (4096 when the config is silent)."""

    name: ClassVar[str] = "mistral"
    architectures: ClassVar[tuple[str, ...]] = ("MistralForCausalLM",)
    gguf_architectures: ClassVar[tuple[str, ...]] = ()

    def from_hf(self, config: ConfigReader) -> DecoderSpec:
        sizes = hf_sizes(config)
        window = config.int_or_none("sliding_window", 4096)
        attention = replace(sizes.attention(hf_rope(config, sizes)), window=window)
        layer = LayerSpec(attention, DenseMlp(sizes.intermediate, hf_activation(config)))
        return sizes.decoder(self.name, (layer,) * sizes.layers)

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        raise UnsupportedError("GGUF has no architecture 'mistral': such files say 'llama'")
