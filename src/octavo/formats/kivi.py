"""KIVI (arXiv 2402.02750): old keys and values in 2 or 4 bits, recent ones in bf16.

Keys have channels that are far larger than the others, so a key shares its step with the same
channel of 31 neighbours in the text; values have none, so a value's step is of 32 channels of one
token (section 3.2). Both are asymmetric. `WINDOW` recent tokens stay in 16 bits (section 3.3).

Which precision query i reads for key j follows from i and j alone (`old_key`, `old_value`), in
prefill as in decode: the authors' prefill reads all keys in 16 bits, and their keys are rounded
128 at a time, ours 32 at a time, when the youngest of them leaves the window.

Arrays are float32 of the namespace `xp`, numpy or torch; both give equal bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from octavo.formats.floats import Array, round_float

KIVI_BITS: Mapping[str, int] = MappingProxyType({"kivi2": 2, "kivi4": 4})
KIVI_GROUP = 32  # tokens that share a channel's step of keys; channels, a token's step of values
WINDOW = 128  # youngest tokens that a query reads in 16 bits; of keys up to 31 more
RECENT = WINDOW + KIVI_GROUP - 1  # all that a query may read in 16 bits


def kivi_head_bytes(bits: int, head_dim: int) -> int:
    """Bytes of one old token's key, or value, in one head: codes, fp16 steps and minima."""
    return head_dim * bits // 8 + 4 * head_dim // KIVI_GROUP


def old_key(query: Array, key: Array) -> Array:
    """Whether the key is read rounded: its whole group is older than the window. Positions."""
    end = key - key % KIVI_GROUP + KIVI_GROUP
    return end <= query + 1 - WINDOW


def old_value(query: Array, value: Array) -> Array:
    """Whether the value is read rounded: it isn't among the last WINDOW. Positions."""
    return value <= query - WINDOW


def round_keys(x: Array, bits: int, xp: Any) -> Array:
    """Keys [groups * KIVI_GROUP, heads, head_dim] as read once they are old."""
    grouped = xp.reshape(x, (-1, KIVI_GROUP, *x.shape[1:]))
    turned = xp.swapaxes(grouped, 1, 3)
    return xp.reshape(xp.swapaxes(_rounded(turned, bits, xp), 1, 3), x.shape)


def round_values(x: Array, bits: int, xp: Any) -> Array:
    """Values [..., head_dim] as read once they are old."""
    return xp.reshape(_rounded(xp.reshape(x, (*x.shape[:-1], -1, KIVI_GROUP)), bits, xp), x.shape)


def _rounded(x: Array, bits: int, xp: Any) -> Array:
    """Each last axis on its grid of 2^bits levels: least + step * code (eq. 2), both fp16."""
    least = round_float(xp.amin(x, -1, keepdims=True), "fp16", xp)
    highest = xp.full_like(least, float(2**bits - 1))
    step = round_float((xp.amax(x, -1, keepdims=True) - least) / highest, "fp16", xp)
    safe = xp.where(step > 0, step, xp.ones_like(step))
    codes = xp.clip(xp.round((x - least) / safe), 0.0, float(2**bits - 1))
    return least + step * codes
