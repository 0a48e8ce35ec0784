"""Phi-3: q, k and v in one tensor, gate and up in one tensor, longrope."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from octavo.spec import naming
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec, Role
from octavo.spec.family import TensorRef
from octavo.spec.rope_config import gguf_rope, hf_rope
from octavo.spec.sizes import gguf_sizes, hf_activation, hf_sizes


class Phi3:
    """Llama's arithmetic with fused tensors; the window holds for every layer."""

    name: ClassVar[str] = "phi3"
    architectures: ClassVar[tuple[str, ...]] = ("Phi3ForCausalLM",)
    gguf_architectures: ClassVar[tuple[str, ...]] = ("phi3",)

    def from_hf(self, config: ConfigReader) -> DecoderSpec:
        sizes = hf_sizes(config)
        config.expect("attention_bias", False)
        window = config.int_or_none("sliding_window")
        attention = replace(sizes.attention(hf_rope(config, sizes)), window=window)
        layer = LayerSpec(attention, DenseMlp(sizes.intermediate, hf_activation(config)))
        return sizes.decoder(self.name, (layer,) * sizes.layers)

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        sizes = gguf_sizes(config)
        window = config.int_or_none("attention.sliding_window", low=0) or None
        attention = replace(sizes.attention(gguf_rope(config, sizes)), window=window)
        layer = LayerSpec(attention, DenseMlp(sizes.intermediate))
        return sizes.decoder(self.name, (layer,) * sizes.layers)

    def hf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        ref = naming.hf_tensor(spec, role)
        fused = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
        return _fused(spec, role, ref, f"{role.part}_proj", f"{fused.get(role.part)}_proj")

    def gguf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        ref = naming.gguf_tensor(spec, role)
        old = f"ffn_{role.part}" if role.part in ("gate", "up") else f"attn_{role.part}"
        return _fused(spec, role, ref, old, "ffn_up" if "ffn" in old else "attn_qkv")


def _fused(spec: DecoderSpec, role: Role, ref: TensorRef, old: str, new: str) -> TensorRef:
    rows = _rows(spec, role)
    return ref if rows is None else TensorRef(ref.name.replace(old, new), rows)


def _rows(spec: DecoderSpec, role: Role) -> tuple[int, int] | None:
    """Rows of a role inside its fused tensor: q, k, v; gate, up."""
    if role.layer is None:
        return None
    layer = spec.layers[role.layer]
    q = layer.attention.heads * layer.attention.head_dim
    kv, mlp = layer.attention.kv_heads * layer.attention.head_dim, layer.mlp.intermediate
    return {
        "q": (0, q),
        "k": (q, q + kv),
        "v": (q + kv, q + 2 * kv),
        "gate": (0, mlp),
        "up": (mlp, 2 * mlp),
    }.get(role.part)
