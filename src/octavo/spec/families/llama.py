"""Llama 1 to 3 and SmolLM2. A GGUF of this architecture may hold Mistral or Mixtral too."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.spec import naming
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec, MoeMlp, Role
from octavo.spec.family import TensorRef
from octavo.spec.rope_config import gguf_rope, hf_rope
from octavo.spec.sizes import Sizes, gguf_sizes, hf_activation, hf_sizes


class Llama:
    """Pre-norm blocks, rope and silu: the shape that the others vary."""

    name: ClassVar[str] = "llama"
    architectures: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM",)
    gguf_architectures: ClassVar[tuple[str, ...]] = ("llama",)

    def from_hf(self, config: ConfigReader) -> DecoderSpec:
        sizes = hf_sizes(config)
        bias = config.bool_("attention_bias", False)
        attention = replace(sizes.attention(hf_rope(config, sizes)), qkv_bias=bias, out_bias=bias)
        mlp = DenseMlp(sizes.intermediate, hf_activation(config), config.bool_("mlp_bias", False))
        return sizes.decoder(self.name, (LayerSpec(attention, mlp),) * sizes.layers)

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        sizes = gguf_sizes(config)
        attention = replace(
            sizes.attention(gguf_rope(config, sizes)),
            qkv_bias=config.bool_("qkv_bias", False),
            out_bias=config.bool_("out_bias", False),
        )
        layer = LayerSpec(attention, _gguf_mlp(config, sizes))
        return sizes.decoder(self.name, (layer,) * sizes.layers)

    def hf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        return naming.hf_tensor(spec, role)

    def gguf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        return naming.unpermuted(spec, role, naming.gguf_tensor(spec, role))


def _gguf_mlp(config: ConfigReader, sizes: Sizes) -> DenseMlp | MoeMlp:
    experts = config.int_("expert_count", 0, low=0, high=2**14)
    if not experts:
        config.expect("expert_used_count", 0)
        return DenseMlp(sizes.intermediate, bias=config.bool_("mlp_bias", False))
    top_k = config.int_("expert_used_count", high=experts)
    return MoeMlp(experts, top_k, sizes.intermediate, normalize_top_k=True)
