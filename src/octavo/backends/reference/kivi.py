"""Attention over a KIVI cache: each query reads old keys and values rounded, recent ones as bf16.

The cache itself keeps bf16; what is old is rounded when it is read, from its own group alone, so
the numbers are those of a cache that stores the codes.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from octavo.backends.reference.attention import mixed_of, scores_of, shares_of
from octavo.backends.reference.rounding import straight_through
from octavo.core.errors import UnsupportedError
from octavo.formats.kivi import KIVI_GROUP, old_key, old_value, round_keys, round_values
from octavo.spec.decoder import AttentionSpec

Pair = tuple[torch.Tensor, torch.Tensor]


def attend_kivi(
    spec: AttentionSpec, bits: int, queries: Pair, kv: Pair, k_at: torch.Tensor
) -> torch.Tensor:
    """`attend` of queries (q [n, heads, head_dim], positions [n]) over keys and values
    [m, kv_heads, head_dim] as bf16 holds them, in whole groups at positions k_at [m].

    Raises UnsupportedError where a step or minimum exceeds fp16.
    """
    (q, q_at), (k, v) = queries, kv
    old_k = old_key(q_at[:, None], k_at[None, :])
    old_v = old_value(q_at[:, None], k_at[None, :])
    old = rounded(k, v, bits)
    scores = torch.where(old_k, scores_of(spec, q, old[0]), scores_of(spec, q, k))
    shares = shares_of(spec, scores, q_at, k_at)
    recent = mixed_of(shares.masked_fill(old_v, 0.0), v)
    return (recent + mixed_of(shares.masked_fill(~old_v, 0.0), old[1])).reshape(q.shape)


def rounded(k: torch.Tensor, v: torch.Tensor, bits: int) -> Pair:
    """Keys and values as they are read once they are old."""
    plain = k.detach().float(), v.detach().float()
    if any(bool((x.abs() >= 65504).any()) for x in plain):
        raise UnsupportedError(
            "keys or values exceed 65504, the largest of fp16, which holds KIVI's minima: use the "
            "KV format bf16"
        )
    keys, values = round_keys(plain[0], bits, torch), round_values(plain[1], bits, torch)
    return straight_through(k, keys.to(k.dtype)), straight_through(v, values.to(v.dtype))


def whole_groups(x: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, head_dim] with zeros behind, up to a whole group; no query sees them."""
    return pad(x, (0, 0, 0, 0, 0, -len(x) % KIVI_GROUP))
