"""What Gemma 2 and 3 share: norms of 1 + w, gelu, sandwich norms, a scaled embedding."""

from __future__ import annotations

import math
from dataclasses import replace

import ml_dtypes
import numpy as np

from octavo.spec import naming
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import AttentionSpec, DecoderSpec, DenseMlp, LayerSpec, Role, RopeSpec
from octavo.spec.family import TensorRef
from octavo.spec.sizes import Sizes, hf_activation


class GemmaTensors:
    """Hugging Face files hold w where the factor is 1 + w; GGUF files hold the factor."""

    def hf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        ref = naming.hf_tensor(spec, role)
        return replace(ref, add=1.0) if naming.is_norm(role) else ref

    def gguf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef:
        return naming.gguf_tensor(spec, role)


def hf_attention(config: ConfigReader, sizes: Sizes, rope: RopeSpec) -> AttentionSpec:
    """Attention whose scale is a number of its own, not the head size."""
    config.expect("use_bidirectional_attention", False)
    bias = config.bool_("attention_bias", False)
    scale = config.float_("query_pre_attn_scalar", 256.0) ** -0.5
    return replace(sizes.attention(rope), scale=scale, qkv_bias=bias, out_bias=bias)


def gguf_attention(sizes: Sizes, rope: RopeSpec, layers_27b: int) -> AttentionSpec:
    """GGUF states no scale; the 27B of each generation, known by its depth, has its own."""
    width = sizes.hidden / sizes.heads if sizes.layers == layers_27b else sizes.head_dim
    return replace(sizes.attention(rope), scale=width**-0.5)


def hf_mlp(config: ConfigReader, sizes: Sizes) -> DenseMlp:
    config.ignore("hidden_act")  # written for old readers; hidden_activation decides
    activation = hf_activation(config, "hidden_activation", "gelu_pytorch_tanh")
    return DenseMlp(sizes.intermediate, activation)


def gemma_decoder(
    family: str, sizes: Sizes, layers: tuple[LayerSpec, ...], softcap: float | None
) -> DecoderSpec:
    """The embedding's factor is sqrt(hidden), which the published models round to bf16."""
    scale = float(np.float32(ml_dtypes.bfloat16(math.sqrt(sizes.hidden))))
    spec = sizes.decoder(family, layers)
    return replace(spec, embed_scale=scale, logit_softcap=softcap)
