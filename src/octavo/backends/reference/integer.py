"""Attention whose products are of integers: what is left for a pipeline of integers (`int8_dot`).

    s = (q8 . k8) sq sk scale            queries and keys rotated, 8 bits, one scale a head
    p = exp(s - max s), in floats        as every softmax here, capped where the model caps
    o = (sum_j w8_j v8_j) sw / sum p     w_j = p_j sv_j, 0 to 255 of the largest of 256 keys

A value's scale belongs to its token, which is what is summed over: so it goes into the weight (as
native int8 has it), and the weights of 256 keys, a split of native attention, share a scale of
their own. Integer sums are exact: below 2^24 as floats hold them.
"""

from __future__ import annotations

import torch

from octavo.backends.reference.attention import mixed_of, scores_of, visible
from octavo.formats.activations import fake_quantize_int8
from octavo.formats.kv import hadamard, quantize_kv
from octavo.spec.decoder import AttentionSpec

SPLIT = 256  # keys; native/exec/step.h
TOP = 255.0  # of the weights' codes, which have no sign
IN_FLOATS = (
    "norms, rotary positions, softmax, the activation function and its product, residual sums, all "
    "scales, and the embedding's row"
)


def attend_int8(
    spec: AttentionSpec,
    queries: tuple[torch.Tensor, torch.Tensor],
    kv: tuple[torch.Tensor, torch.Tensor],
    k_at: torch.Tensor,
) -> torch.Tensor:
    """`attend` of queries (q [n, heads, head_dim], positions [n]) over plain keys and values
    [m, kv_heads, head_dim] at positions k_at [m], ascending; q's shape comes back, float32."""
    (q, q_at), (k, v) = queries, kv
    codes, key_scale = quantize_kv(k.float(), "int8", True, torch)
    turned = hadamard(q.float(), torch)
    rounded = fake_quantize_int8(turned, turned.abs().amax(-1, keepdim=True), torch)
    scores = scores_of(spec, rounded, codes.float() * key_scale)
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    scores = scores.masked_fill(~visible(spec.window, q_at, k_at), float("-inf"))
    p = torch.exp(scores - scores.amax(-1, keepdim=True))
    codes, value_scale = quantize_kv(v.float(), "int8", False, torch)
    weights = p * value_scale[..., 0].T[:, None, None, :]
    mixed = torch.zeros(len(q), spec.kv_heads, q.shape[1] // spec.kv_heads, q.shape[2])
    for split in torch.unique(k_at // SPLIT).tolist():
        mine = k_at // SPLIT == split
        whole, step = weight_codes(weights[..., mine])
        mixed = mixed + mixed_of(whole, codes[mine].float()) * step.permute(2, 0, 1, 3)
    total = p.sum(-1).permute(2, 0, 1)[..., None]
    return (mixed / total).reshape(q.shape)


def weight_codes(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers 0 to 255 as floats, and the step [..., 1] of each row; a row of zeros stays so."""
    step = weights.amax(-1, keepdim=True) / TOP
    return torch.round(weights / torch.where(step > 0, step, torch.ones_like(step))), step
