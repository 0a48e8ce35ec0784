"""Integer formats of keys and values (docs/numerics.md), over the array API: numpy and torch give
equal bits, and the native cache the same codes and scales.

Keys of both formats, and values of int4, are rotated first: the Hadamard transform spreads a
channel that is far larger than the others over all of them (QuaRot, arXiv 2404.00456), and since
H H = n, (H q) . (H k / n) is q . k.

Arrays are float32 [..., head_dim] of the namespace `xp`.
"""

from __future__ import annotations

from typing import Any

from octavo.formats.floats import Array, round_bf16
from octavo.formats.kivi import KIVI_BITS, kivi_head_bytes

KV_GROUP = 32  # elements of a head that share a scale of int4
_SMALLEST = 2.0**-100  # a head or group whose largest value is below counts as zeros


def kv_head_bytes(format: str, head_dim: int) -> int:
    """Bytes of one token's key, or value, in one head: codes and scales; of KIVI an old one's."""
    if format in ("int8", "int8_dot"):
        return head_dim + 2
    if format == "int4":
        return head_dim // 2 + 2 * (head_dim // KV_GROUP)
    if format.startswith("fp8"):
        return head_dim
    if format in KIVI_BITS:
        return kivi_head_bytes(KIVI_BITS[format], head_dim)
    return head_dim * (4 if format == "fp32" else 2)


def hadamard(x: Array, xp: Any) -> Array:
    """The transform of each block of head_dim's largest power of two, not normalised: sums and
    differences at distances 1, 2, 4 ... in this order."""
    dim = x.shape[-1]
    distance = 1
    while distance < (dim & -dim):
        pairs = xp.reshape(x, (*x.shape[:-1], -1, 2, distance))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = xp.reshape(xp.stack([a + b, a - b], -2), x.shape)
        distance *= 2
    return x


def quantize_kv(x: Array, format: str, key: bool, xp: Any) -> tuple[Array, Array]:
    """Codes int8 [..., head_dim] and scales float32 (bf16 values) [..., scales of a head].

    int8: -127 to 127, one scale. int4: -8 to 7, a scale for each 32.
    """
    if _rotated(format, key):
        dim = x.shape[-1]
        x = hadamard(x, xp) * (1.0 / (dim & -dim))
    size = x.shape[-1] if format == "int8" else KV_GROUP
    grouped = xp.reshape(x, (*x.shape[:-1], -1, size))
    high, low = xp.amax(grouped, -1, keepdims=True), xp.amin(grouped, -1, keepdims=True)
    peak = xp.where(high > -low, high, low)
    live = xp.abs(peak) >= _SMALLEST
    safe = xp.where(live, peak, xp.ones_like(peak))
    lowest, highest = (-127.0, 127.0) if format == "int8" else (-8.0, 7.0)
    if format == "int8":
        scale = _bf16_up(xp.abs(safe) / xp.full_like(safe, 127.0), xp)
    else:
        scale = round_bf16(safe / xp.full_like(safe, -8.0), xp)
    codes = xp.clip(xp.round(grouped * (xp.ones_like(scale) / scale)), lowest, highest)
    codes = xp.where(live, codes, xp.zeros_like(codes))
    scale = xp.where(live, scale, xp.zeros_like(scale))
    return xp.asarray(xp.reshape(codes, x.shape), dtype=xp.int8), scale[..., 0]


def fake_quantize_kv(x: Array, format: str, key: bool, xp: Any) -> Array:
    """float32 [..., head_dim]: what a query reads in place of x, rotated back."""
    codes, scale = quantize_kv(x, format, key, xp)
    wide = xp.asarray(codes, dtype=xp.float32)
    grouped = xp.reshape(wide, (*scale.shape, -1)) * scale[..., None]
    values = xp.reshape(grouped, x.shape)
    return hadamard(values, xp) if _rotated(format, key) else values


def _rotated(format: str, key: bool) -> bool:
    return key or format == "int4"


def _bf16_up(x: Array, xp: Any) -> Array:
    """Positive x rounded up to bfloat16, as float32."""
    return ((x.view(xp.int32) + 0xFFFF) & -0x10000).view(xp.float32)
