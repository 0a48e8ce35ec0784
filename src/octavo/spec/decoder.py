"""A model as data: one frozen `DecoderSpec` describes any supported decoder.

Tensor names, fused groups, shared inputs, the KV layout and the native plan are derived from it.
All weights are in the Hugging Face layout: rope rotates halves (x[:d/2], x[d/2:]), norm weights
are the factors themselves (Gemma's 1 + w already added).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]
ScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Frequency scaling; fields that a kind does not use stay at their defaults."""

    kind: ScalingKind
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    attention_factor: float | None = None  # yarn, longrope; None: derived from factor
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn
    short_factor: tuple[float, ...] = ()  # longrope, and llama3 frequencies read from a GGUF tensor
    long_factor: tuple[float, ...] = ()  # longrope


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of the first `dim` elements of a head."""

    theta: float
    dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention. `window` counts keys i-window+1..i, the query's own included."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False  # RMS norm over head_dim on q and k, before rope
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """down(act(gate(x)) * up(x))."""

    intermediate: int
    activation: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True, slots=True)
class MoeMlp:
    """top_k of `experts` dense MLPs, weighted by the router's softmax."""

    experts: int
    top_k: int
    intermediate: int
    normalize_top_k: bool
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One block. `post_norms`: Gemma's sandwich, a norm on each branch's output before the sum."""

    attention: AttentionSpec
    mlp: DenseMlp | MoeMlp
    post_norms: bool = False


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer with RMS norms and rotary positions."""

    family: str
    vocab: int
    hidden: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    max_positions: int
    tied_head: bool
    embed_scale: float = 1.0  # rounded as the source does (Gemma rounds sqrt(hidden) to bf16)
    logit_softcap: float | None = None
    # Of a factored vocabulary (octavo.vocab): 0 for whole tables. embed [vocab, embed_rank], then
    # embed_up [hidden, embed_rank]; head_down [head_rank, hidden], then head [vocab, head_rank].
    embed_rank: int = 0
    head_rank: int = 0


Part = Literal[
    "embed", "head", "final_norm",
    "attn_norm", "q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm",
    "attn_post_norm", "mlp_norm", "gate", "up", "down", "gate_bias", "up_bias", "down_bias",
    "mlp_post_norm", "router", "embed_up", "head_down",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor is for. `expert` is set for the gate, up and down of an expert."""

    part: Part
    layer: int | None = None
    expert: int | None = None

    def __str__(self) -> str:
        where = "" if self.layer is None else f"layer {self.layer} "
        who = "" if self.expert is None else f" of expert {self.expert}"
        return f"{where}{self.part}{who}"
