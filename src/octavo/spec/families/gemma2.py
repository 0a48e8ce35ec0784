"""Gemma 2: softcaps on scores and logits; every other layer slides, the first one too."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import AttentionSpec, DecoderSpec, DenseMlp, LayerSpec
from octavo.spec.families.gemma import (
    GemmaTensors,
    gemma_decoder,
    gguf_attention,
    hf_attention,
    hf_mlp,
)
from octavo.spec.rope_config import gguf_rope, hf_rope
from octavo.spec.sizes import Sizes, gguf_sizes, hf_sizes, hf_windows


class Gemma2(GemmaTensors):
    """Even layers see a window; scores are capped at 50, logits at 30."""

    name: ClassVar[str] = "gemma2"
    architectures: ClassVar[tuple[str, ...]] = ("Gemma2ForCausalLM",)
    gguf_architectures: ClassVar[tuple[str, ...]] = ("gemma2",)

    def from_hf(self, config: ConfigReader) -> DecoderSpec:
        sizes = hf_sizes(config, tied=True, head_dim=256)
        attention = hf_attention(config, sizes, hf_rope(config, sizes))
        window = config.int_or_none("sliding_window", 4096)
        config.expect("sliding_window_size", window)
        windows = hf_windows(config, sizes.layers, window, _slides(sizes.layers))
        return self._spec(config, sizes, attention, hf_mlp(config, sizes), windows)

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        sizes = gguf_sizes(config)
        attention = gguf_attention(sizes, gguf_rope(config, sizes), layers_27b=46)
        window = config.int_("attention.sliding_window", 4096)
        windows = tuple(window if slide else None for slide in _slides(sizes.layers))
        mlp = DenseMlp(sizes.intermediate, "gelu_tanh")
        return self._spec(config, sizes, attention, mlp, windows)

    def _spec(
        self,
        config: ConfigReader,
        sizes: Sizes,
        attention: AttentionSpec,
        mlp: DenseMlp,
        windows: tuple[int | None, ...],
    ) -> DecoderSpec:
        cap = config.float_or_none("attn_logit_softcapping", 50.0)
        capped = replace(attention, softcap=cap)
        layers = tuple(LayerSpec(replace(capped, window=w), mlp, True) for w in windows)
        final = config.float_or_none("final_logit_softcapping", 30.0)
        return gemma_decoder(self.name, sizes, layers, final)


def _slides(layers: int) -> tuple[bool, ...]:
    return tuple(i % 2 == 0 for i in range(layers))
