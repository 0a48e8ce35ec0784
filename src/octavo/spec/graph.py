"""What follows from a spec: tensors and their shapes, shared inputs, foldable edges, KV groups.

Nothing here knows a family; all of it is derived.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.core.errors import InternalError
from octavo.spec.decoder import DecoderSpec, DenseMlp, LayerSpec, MoeMlp, Part, Role


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers of equal key/value shape and window: they share a block table."""

    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    window: int | None


@dataclass(frozen=True, slots=True)
class FoldEdge:
    """A diagonal D on the output of `source` can move into `targets`: source * D, targets / D.

    The source is a norm (its weight), `up` (its rows) or `v` (its rows). `repeat` is how often a
    source channel block of `block` channels occurs in a row of the targets: with grouped queries,
    head h of the targets' input reads kv head h // repeat.
    """

    source: Role
    targets: tuple[Role, ...]
    block: int = 0
    repeat: int = 1


def roles(spec: DecoderSpec) -> tuple[Role, ...]:
    """Every tensor of the model, in the order of computation. A tied head has none of its own."""
    found = [Role("embed"), *_factors(spec, "embed_up")]
    for index in range(len(spec.layers)):
        found.extend(_layer_roles(spec.layers[index], index))
    found += [Role("final_norm"), *_factors(spec, "head_down")]
    return tuple(found) if spec.tied_head else (*found, Role("head"))


def head_role(spec: DecoderSpec) -> Role:
    """The tensor that turns hidden states into logits."""
    return Role("embed") if spec.tied_head else Role("head")


def linear_roles(spec: DecoderSpec) -> tuple[Role, ...]:
    """Matrices that activations are multiplied with, the head's last. Routers are not among them:
    they are small, decide discretely, and stay in fp32."""
    parts = ("embed_up", "q", "k", "v", "o", "gate", "up", "down", "head_down")
    return (*(role for role in roles(spec) if role.part in parts), head_role(spec))


def shared_inputs(spec: DecoderSpec, layer: int) -> tuple[tuple[Role, ...], ...]:
    """Linear roles of a layer, grouped by the input they read (one Hessian each)."""
    mlp = spec.layers[layer].mlp
    groups = [_at(layer, "q", "k", "v"), _at(layer, "o")]
    if isinstance(mlp, DenseMlp):
        return (*groups, _at(layer, "gate", "up"), _at(layer, "down"))
    # An expert sees only the tokens routed to it, so experts don't share statistics.
    for expert in range(mlp.experts):
        groups.append((Role("gate", layer, expert), Role("up", layer, expert)))
        groups.append((Role("down", layer, expert),))
    return tuple(groups)


def fold_edges(spec: DecoderSpec, layer: int) -> tuple[FoldEdge, ...]:
    """Where a per-channel scale can move within a layer without changing its function."""
    block = spec.layers[layer]
    attention, mlp = block.attention, block.mlp
    readers = tuple(role for role in _layer_roles(block, layer) if role.part in ("gate", "up"))
    if isinstance(mlp, MoeMlp):
        readers = (Role("router", layer), *readers)
    edges = [
        FoldEdge(Role("attn_norm", layer), _at(layer, "q", "k", "v")),
        FoldEdge(Role("mlp_norm", layer), readers),
        FoldEdge(
            Role("v", layer),
            _at(layer, "o"),
            block=attention.head_dim,
            repeat=attention.heads // attention.kv_heads,
        ),
    ]
    experts = range(mlp.experts) if isinstance(mlp, MoeMlp) else (None,)
    edges += [FoldEdge(Role("up", layer, e), (Role("down", layer, e),)) for e in experts]
    return tuple(edges)


def kv_groups(spec: DecoderSpec) -> tuple[LayerGroup, ...]:
    """Layers grouped by (kv heads, head size, window), in order of first appearance."""
    found: dict[tuple[int, int, int | None], list[int]] = {}
    for index, layer in enumerate(spec.layers):
        a = layer.attention
        found.setdefault((a.kv_heads, a.head_dim, a.window), []).append(index)
    return tuple(LayerGroup(tuple(layers), *key) for key, layers in found.items())


def role_shape(spec: DecoderSpec, role: Role) -> tuple[int, ...]:
    """Shape of a role's tensor: (out, in) of a matrix, (n,) of a norm or bias."""
    if role.layer is None:
        return _outer_shape(spec, role.part)
    layer = spec.layers[role.layer]
    attention, mlp, hidden = layer.attention, layer.mlp, spec.hidden
    q = attention.heads * attention.head_dim
    kv = attention.kv_heads * attention.head_dim
    outputs = {"q": q, "k": kv, "v": kv, "gate": mlp.intermediate, "up": mlp.intermediate}
    inputs = {"o": q, "down": mlp.intermediate}
    if role.part.endswith("_bias"):
        return (outputs.get(role.part.removesuffix("_bias"), hidden),)
    if role.part in ("q_norm", "k_norm"):
        return (attention.head_dim,)
    if role.part.endswith("norm"):
        return (hidden,)
    if role.part == "router":
        if not isinstance(mlp, MoeMlp):
            raise InternalError(f"{role} asked of a dense layer")
        return (mlp.experts, hidden)
    return (outputs.get(role.part, hidden), inputs.get(role.part, hidden))


def _outer_shape(spec: DecoderSpec, part: Part) -> tuple[int, ...]:
    if part == "final_norm":
        return (spec.hidden,)
    if part == "embed_up":
        return (spec.hidden, spec.embed_rank)
    if part == "head_down":
        return (spec.head_rank, spec.hidden)
    rank = spec.embed_rank if part == "embed" else spec.head_rank
    return (spec.vocab, rank or spec.hidden)


def _factors(spec: DecoderSpec, part: Part) -> tuple[Role, ...]:
    rank = spec.embed_rank if part == "embed_up" else spec.head_rank
    return (Role(part),) if rank else ()


def _layer_roles(layer: LayerSpec, index: int) -> tuple[Role, ...]:
    attention = layer.attention
    found = list(_at(index, "attn_norm", "q", "k", "v"))
    if attention.qkv_bias:
        found += _at(index, "q_bias", "k_bias", "v_bias")
    if attention.qk_norm:
        found += _at(index, "q_norm", "k_norm")
    found += _at(index, "o", "o_bias") if attention.out_bias else _at(index, "o")
    if layer.post_norms:
        found += _at(index, "attn_post_norm")
    found += (*_at(index, "mlp_norm"), *_mlp_roles(layer.mlp, index))
    return (*found, *_at(index, "mlp_post_norm")) if layer.post_norms else tuple(found)


def _mlp_roles(mlp: DenseMlp | MoeMlp, index: int) -> tuple[Role, ...]:
    if isinstance(mlp, DenseMlp):
        biases = _at(index, "gate_bias", "up_bias", "down_bias") if mlp.bias else ()
        return (*_at(index, "gate", "up", "down"), *biases)
    parts: tuple[Part, ...] = ("gate", "up", "down")
    experts = (Role(part, index, e) for e in range(mlp.experts) for part in parts)
    return (Role("router", index), *experts)


def _at(layer: int, *parts: Part) -> tuple[Role, ...]:
    return tuple(Role(part, layer) for part in parts)
