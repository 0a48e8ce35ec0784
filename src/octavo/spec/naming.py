"""Tensor names that most families share; a family states only where it differs."""

from __future__ import annotations

from octavo.spec.decoder import DecoderSpec, Part, Role
from octavo.spec.family import TensorRef

_HF_TOP: dict[Part, str] = {
    "embed": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm": "model.norm.weight",
    "embed_up": "model.embed_tokens.up.weight",
    "head_down": "lm_head.down.weight",
}
_HF_LAYER: dict[Part, str] = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "attn_post_norm": "post_attention_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
    "router": "mlp.gate.weight",
}
_GGUF_TOP: dict[Part, str] = {
    "embed": "token_embd.weight",
    "head": "output.weight",
    "final_norm": "output_norm.weight",
}
_GGUF_LAYER: dict[Part, str] = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o_bias": "attn_output.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "attn_post_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "gate_bias": "ffn_gate.bias",
    "up_bias": "ffn_up.bias",
    "down_bias": "ffn_down.bias",
    "mlp_post_norm": "post_ffw_norm.weight",
    "router": "ffn_gate_inp.weight",
}


def resolve_tied(spec: DecoderSpec, role: Role) -> Role:
    """The role whose tensor serves `role`: a tied head is the embedding."""
    return Role("embed") if role.part == "head" and spec.tied_head else role


def hf_tensor(spec: DecoderSpec, role: Role) -> TensorRef:
    """The Hugging Face name that Llama set and that most families kept."""
    role = resolve_tied(spec, role)
    if role.layer is None:
        return TensorRef(_HF_TOP[role.part])
    name = _HF_LAYER[role.part]
    if role.part == "mlp_norm" and spec.layers[role.layer].post_norms:
        name = "pre_feedforward_layernorm.weight"
    if role.expert is not None:
        name = name.replace("mlp.", f"mlp.experts.{role.expert}.")
    return TensorRef(f"model.layers.{role.layer}.{name}")


def gguf_tensor(spec: DecoderSpec, role: Role) -> TensorRef:
    """The GGUF name; an expert is a slice of a stacked tensor."""
    role = resolve_tied(spec, role)
    if role.layer is None:
        return TensorRef(_GGUF_TOP[role.part])
    name = f"blk.{role.layer}.{_GGUF_LAYER[role.part]}"
    if role.expert is not None:
        return TensorRef(name.replace(".weight", "_exps.weight"), index=role.expert)
    return TensorRef(name)


def unpermuted(spec: DecoderSpec, role: Role, ref: TensorRef) -> TensorRef:
    """Marks q and k rows that GGUF stores for interleaved rope (the Llama family)."""
    if role.layer is None or role.part not in ("q", "k", "q_bias", "k_bias"):
        return ref
    attention = spec.layers[role.layer].attention
    heads = attention.heads if role.part.startswith("q") else attention.kv_heads
    return TensorRef(ref.name, ref.rows, heads, ref.add, ref.index)


def is_norm(role: Role) -> bool:
    return role.part.endswith("norm")


class StandardTensors:
    """`hf_tensor` and `gguf_tensor` of a family without surprises."""

    def hf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        return hf_tensor(spec, role)

    def gguf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        return gguf_tensor(spec, role)
