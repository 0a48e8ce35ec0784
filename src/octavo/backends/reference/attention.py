"""Rotary positions and grouped-query attention, as plain as their formulas."""

from __future__ import annotations

import torch

from octavo.spec.decoder import AttentionSpec


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rope on the first 2 * cos.shape[-1] elements: (a, b) -> (a cos - b sin, b cos + a sin).

    x [rows, heads, head_dim]; cos and sin [rows, pairs]. Elements beyond pass unchanged.
    """
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None, :], sin[:, None, :]
    return torch.cat([a * c - b * s, b * c + a * s, rest], dim=-1)


def attend(
    spec: AttentionSpec,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_at: torch.Tensor,
    k_at: torch.Tensor,
) -> torch.Tensor:
    """softmax(cap(scale * q k)) v over the visible keys.

    q [..., n, heads, head_dim] at positions q_at [n]; k, v [..., m, kv_heads, head_dim] at k_at
    [m]; the leading axes are texts of equal length, side by side.
    """
    shares = shares_of(spec, scores_of(spec, q, k), q_at, k_at)
    return mixed_of(shares, v).reshape(q.shape)


def scores_of(spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """scale * q k, [..., kv_heads, heads that share one, n, m]."""
    heads, dim = q.shape[-2:]
    grouped = q.reshape(*q.shape[:-2], spec.kv_heads, heads // spec.kv_heads, dim)
    return torch.einsum("...ngrd,...mgd->...grnm", grouped, k) * spec.scale


def shares_of(
    spec: AttentionSpec, scores: torch.Tensor, q_at: torch.Tensor, k_at: torch.Tensor
) -> torch.Tensor:
    """The softmax over the visible keys, capped where the model caps."""
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    scores = scores.masked_fill(~visible(spec.window, q_at, k_at), float("-inf"))
    return torch.softmax(scores, dim=-1)


def mixed_of(shares: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Values by their shares, [..., n, kv_heads, heads that share one, head_dim]."""
    return torch.einsum("...grnm,...mgd->...ngrd", shares, v)


def visible(window: int | None, q_at: torch.Tensor, k_at: torch.Tensor) -> torch.Tensor:
    """[n, m]: the key isn't later than the query and, with a window, among the last `window`."""
    behind = q_at[:, None] - k_at[None, :]
    seen = behind >= 0
    return seen if window is None else seen & (behind < window)
