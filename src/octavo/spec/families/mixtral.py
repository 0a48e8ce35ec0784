"""Mixtral: Mistral with experts. Its GGUF files call themselves llama."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.core.errors import UnsupportedError
from octavo.spec import naming
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, LayerSpec, MoeMlp, Role
from octavo.spec.family import TensorRef
from octavo.spec.rope_config import hf_rope
from octavo.spec.sizes import hf_activation, hf_sizes

_EXPERT_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}


class Mixtral:
    """The router's softmax over the chosen experts alone: top-k probabilities sum to 1."""

    name: ClassVar[str] = "mixtral"
    architectures: ClassVar[tuple[str, ...]] = ("MixtralForCausalLM",)
    gguf_architectures: ClassVar[tuple[str, ...]] = ()

    def from_hf(self, config: ConfigReader) -> DecoderSpec:
        sizes = hf_sizes(config)
        window = config.int_or_none("sliding_window")
        attention = replace(sizes.attention(hf_rope(config, sizes, 1e6)), window=window)
        experts = config.int_("num_local_experts", 8, high=2**14)
        top_k = config.int_("num_experts_per_tok", 2, high=experts)
        mlp = MoeMlp(experts, top_k, sizes.intermediate, True, hf_activation(config))
        return sizes.decoder(self.name, (LayerSpec(attention, mlp),) * sizes.layers)

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        raise UnsupportedError("GGUF has no architecture 'mixtral': such files say 'llama'")

    def hf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        moe = f"model.layers.{role.layer}.block_sparse_moe"
        if role.part == "router":
            return TensorRef(f"{moe}.gate.weight")
        if role.expert is not None:
            return TensorRef(f"{moe}.experts.{role.expert}.{_EXPERT_NAMES[role.part]}.weight")
        return naming.hf_tensor(spec, role)

    def gguf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        return naming.unpermuted(spec, role, naming.gguf_tensor(spec, role))
