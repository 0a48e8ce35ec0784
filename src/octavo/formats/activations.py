"""Rounding of activations (docs/numerics.md), over the array API: numpy and torch give equal bits.

Arrays are float32 [..., k] of the namespace `xp`. The last axis counts as padded with zeros to
a multiple of 32, as the kernels hold it.
"""

from __future__ import annotations

from typing import Any

from octavo.formats.floats import Array
from octavo.formats.floats import round_bf16 as round_bf16

UNIT = 32  # inputs of a unit: the kernels pad rows of activations to a multiple of it


def padded_width(k: int) -> int:
    """k rounded up to whole units."""
    return -(-k // UNIT) * UNIT


def a8_group_for(weight_group: int, k_pad: int) -> int:
    """Inputs per activation scale: 64 when the weight's group (k_pad or more: one scale per row)
    and k_pad are multiples of 64, else 32. Mirrors `a8_group_for` of native/core/types.h."""
    wide = weight_group % 64 == 0 or weight_group >= k_pad
    return 64 if wide and k_pad % 64 == 0 else 32


def quantize_a8(x: Array, group: int, xp: Any) -> tuple[Array, Array]:
    """int8 [..., k_pad] and float32 scales [..., k_pad / group]; `group` is 32 or 64.

    Per group: amax = max |x|; q = rint(fl(x * fl(127 / amax))), half to even; scale =
    fl(amax / 127). A group of zeros, or one so small that 127 / amax overflows (amax below
    about 3.7e-37), has q = 0 and scale = 0.
    """
    grouped = _grouped(x, group, xp)
    amax = xp.amax(xp.abs(grouped), axis=-1, keepdims=True)
    inverse, scale = _inverse_and_scale(amax, xp)
    q = xp.asarray(xp.round(grouped * inverse), dtype=xp.int8)
    return xp.reshape(q, (*q.shape[:-2], -1)), scale[..., 0]


def fake_quantize_a8(x: Array, group: int, xp: Any) -> Array:
    """float32 [..., k]: fl(scale * q), the values that an a8 product sees in place of x."""
    q, scale = quantize_a8(x, group, xp)
    grouped = xp.reshape(xp.asarray(q, dtype=xp.float32), (*scale.shape, group))
    return xp.reshape(grouped * scale[..., None], q.shape)[..., : x.shape[-1]]


def _inverse_and_scale(amax: Array, xp: Any) -> tuple[Array, Array]:
    nothing = amax < _SMALLEST
    zeros = xp.zeros_like(amax)
    safe = xp.where(nothing, xp.ones_like(amax), amax)
    c127 = xp.full_like(amax, 127.0)
    return xp.where(nothing, zeros, c127 / safe), xp.where(nothing, zeros, amax / c127)


def _grouped(x: Array, group: int, xp: Any) -> Array:
    width = padded_width(x.shape[-1])
    assert group in (32, 64), group
    assert width % group == 0, (width, group)
    missing = width - x.shape[-1]
    if missing:
        x = xp.concatenate([x, *[xp.zeros_like(x[..., :1])] * missing], axis=-1)
    return xp.reshape(x, (*x.shape[:-1], width // group, group))


# 127 divided by anything below overflows fp32.
_SMALLEST = 127.0 / float.fromhex("0x1.fffffep127")
