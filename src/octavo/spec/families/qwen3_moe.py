"""Qwen 3 with experts: Qwen 3 attention, many small experts, some layers may stay dense."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec, MoeMlp
from octavo.spec.naming import StandardTensors
from octavo.spec.rope_config import gguf_rope, hf_rope
from octavo.spec.sizes import Sizes, gguf_sizes, hf_activation, hf_sizes


class Qwen3Moe(StandardTensors):
    """Whether top-k probabilities are made to sum to 1 is the config's choice."""

    name: ClassVar[str] = "qwen3_moe"
    architectures: ClassVar[tuple[str, ...]] = ("Qwen3MoeForCausalLM",)
    gguf_architectures: ClassVar[tuple[str, ...]] = ("qwen3moe",)

    def from_hf(self, config: ConfigReader) -> DecoderSpec:
        sizes = hf_sizes(config)
        bias = config.bool_("attention_bias", False)
        window = config.int_or_none("sliding_window", 4096)
        slides = config.bool_("use_sliding_window", False)
        config.ignore("max_window_layers")  # a window holds for every layer here
        attention = replace(
            sizes.attention(hf_rope(config, sizes)),
            qk_norm=True,
            qkv_bias=bias,
            out_bias=bias,
            window=window if slides else None,
        )
        layers = tuple(LayerSpec(attention, mlp) for mlp in _hf_mlps(config, sizes))
        return sizes.decoder(self.name, layers)

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        sizes = gguf_sizes(config)
        attention = replace(sizes.attention(gguf_rope(config, sizes)), qk_norm=True)
        experts = config.int_("expert_count", high=2**14)
        top_k = config.int_("expert_used_count", high=experts)
        width = config.int_("expert_feed_forward_length", high=2**24)
        mlp = MoeMlp(experts, top_k, width, config.bool_("expert_weights_norm", True))
        return sizes.decoder(self.name, (LayerSpec(attention, mlp),) * sizes.layers)


def _hf_mlps(config: ConfigReader, sizes: Sizes) -> tuple[DenseMlp | MoeMlp, ...]:
    """Every `decoder_sparse_step`-th layer has experts, unless `mlp_only_layers` names it."""
    activation = hf_activation(config)
    experts = config.int_("num_local_experts", 128, high=2**14)  # transformers 5
    experts = config.int_("num_experts", experts, high=2**14)  # transformers 4
    top_k = config.int_("num_experts_per_tok", 8, high=experts)
    width = config.int_("moe_intermediate_size", 768, high=2**24)
    moe = MoeMlp(experts, top_k, width, config.bool_("norm_topk_prob", False), activation)
    dense = DenseMlp(sizes.intermediate, activation)
    step, only = config.int_("decoder_sparse_step", 1), config.ints("mlp_only_layers", ())
    return tuple(dense if i in only or (i + 1) % step else moe for i in range(sizes.layers))
