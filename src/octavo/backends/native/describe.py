"""Turns spec, vectors and packed weights into the plain description that native resolves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from octavo import _native
from octavo.backends.base import KvLayout, RuntimeConfig
from octavo.core.errors import InternalError, UnsupportedError
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec, Role
from octavo.spec.graph import head_role, role_shape, roles
from octavo.spec.rope import cos_sin

Packed = Mapping[Role, tuple[_native.Weight, _native.Act, _native.ActScale, float]]
_ACTIVATION = {"silu": _native.MlpAct.SILU, "gelu_tanh": _native.MlpAct.GELU_TANH}
_KV_FORMAT = {
    "bf16": _native.KvFormat.BF16,
    "fp32": _native.KvFormat.F32,
    "fp16": _native.KvFormat.F16,
    "int8": _native.KvFormat.INT8,
    "int4": _native.KvFormat.INT4,
    "kivi2": _native.KvFormat.KIVI2,
    "kivi4": _native.KvFormat.KIVI4,
    "fp8_e4m3": _native.KvFormat.E4M3,
    "fp8_e5m2": _native.KvFormat.E5M2,
}


def describe_model(
    spec: DecoderSpec, source: WeightSource, packed: Packed, layout: KvLayout, context: int
) -> _native.ModelDesc:
    """The whole model. Norms and biases are read here, in fp32."""
    model = _native.ModelDesc()
    model.hidden, model.vocab, model.norm_eps = spec.hidden, spec.vocab, spec.norm_eps
    model.embed_scale, model.softcap = spec.embed_scale, spec.logit_softcap or 0.0
    model.embed = packed[Role("embed")][0]
    model.set_head(*packed[head_role(spec)])
    if spec.embed_rank:
        model.set_embed_up(*packed[Role("embed_up")])
    if spec.head_rank:
        model.set_head_down(*packed[Role("head_down")])
    model.set_final_norm(_vector(source, Role("final_norm")))
    ropes = list(dict.fromkeys(layer.attention.rope for layer in spec.layers))
    for rope in ropes:
        model.add_rope(*cos_sin(rope, np.arange(context), context))
    group_of, recent_of = _groups_of(layout, recent=False), _groups_of(layout, recent=True)
    of_layer: dict[int | None, list[Role]] = {}
    for role in roles(spec):
        of_layer.setdefault(role.layer, []).append(role)
    for index, layer in enumerate(spec.layers):
        described = _layer(layer)
        described.rope, described.kv_group = ropes.index(layer.attention.rope), group_of[index]
        described.recent_group = recent_of.get(index, -1)
        for role in of_layer[index]:
            _attach(described, spec, source, packed, role)
        model.add_layer(described)
    return model


def describe_runtime(
    config: RuntimeConfig, kv_blocks: tuple[int, ...], usable_cpus: int
) -> _native.RuntimeDesc:
    """`config` with nothing left to resolve."""
    runtime = _native.RuntimeDesc()
    runtime.max_tokens, runtime.max_seqs = config.max_tokens, config.max_seqs
    runtime.context, runtime.threads = config.context, config.threads
    runtime.usable_cpus, runtime.block_size = usable_cpus, config.block_size
    runtime.kv_format, runtime.kv_blocks = _KV_FORMAT[config.kv_format], list(kv_blocks)
    runtime.isa, runtime.wide_ratio = config.isa, config.wide_ratio
    return runtime


def _groups_of(layout: KvLayout, recent: bool) -> dict[int, int]:
    """Index of each layer's group of the layout's format, or of recent tokens."""
    groups = [(i, g) for i, g in enumerate(layout.groups) if (g.format != "auto") == recent]
    return {layer: index for index, group in groups for layer in group.layers}


def _layer(layer: LayerSpec) -> _native.LayerDesc:
    attention, mlp = layer.attention, layer.mlp
    if not isinstance(mlp, DenseMlp):
        raise InternalError("a mixture of experts reached the native plan; `supports` refuses it")
    described = _native.LayerDesc()
    described.heads, described.kv_heads = attention.heads, attention.kv_heads
    described.head_dim, described.scale = attention.head_dim, attention.scale
    described.softcap, described.window = attention.softcap or 0.0, attention.window or 0
    described.intermediate, described.activation = mlp.intermediate, _ACTIVATION[mlp.activation]
    return described


def _attach(
    layer: _native.LayerDesc, spec: DecoderSpec, source: WeightSource, packed: Packed, role: Role
) -> None:
    if len(role_shape(spec, role)) == 2:
        layer.set_weight(str(role.part), *packed[role])
    else:
        layer.set_vector(str(role.part), _vector(source, role))


def _vector(source: WeightSource, role: Role) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    values = np.ascontiguousarray(source.tensor(role).float32(), np.float32)
    if not np.isfinite(values).all():
        raise UnsupportedError(f"{role} holds values that are not finite; the file is damaged")
    return values
