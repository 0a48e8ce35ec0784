"""Rounding of activations (docs/numerics.md), over the array API: numpy and torch give equal bits.

Arrays are float32 [..., k] of the namespace `xp`. The last axis counts as padded with zeros to
a multiple of 32, as the kernels hold it.
"""

from __future__ import annotations

from typing import Any

from octavo.formats.floats import Array
from octavo.formats.floats import round_bf16 as round_bf16
from octavo.formats.number_format import NumberFormat

WIDE_RATIO = 14.0  # a8a16: a row whose maximum over RMS is larger takes 16 bits
LEVELS8 = ("iq4nl", "trellis2")  # codebooks whose levels are integers of 8 bits
UNIT = 32  # inputs of a unit: the kernels pad rows of activations to a multiple of it


def takes_a8(weight: NumberFormat) -> bool:
    """Whether int8 activations multiply such weights: integers, and codebooks of up to 4 bits,
    whose levels count as integers of 16 bits (`codebooks.level_steps`)."""
    return weight.kind == "int" or (weight.kind == "codebook" and weight.bits <= 4)


def takes_a16(weight: NumberFormat) -> bool:
    """Whether 16-bit activations do: levels of 16 bits would take sums beyond 32 bits."""
    return weight.kind == "int" or weight.variant in LEVELS8


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
    fl(amax / 127). A group of zeros, or with an amax below 2^-118 (127 / amax would soon
    overflow), has q = 0 and scale = 0.
    """
    q, scale = _rounded(x, group, 127.0, 2.0**-118, xp)
    return xp.asarray(q, dtype=xp.int8), scale


def quantize_a16(x: Array, group: int, xp: Any) -> tuple[Array, Array]:
    """int32 [..., k_pad] and float32 scales [..., k_pad / group]; `group` is 32 or 64.

    As a8 with 32639 = 127 * 256 + 127 in place of 127, and nothing below an amax of 2^-100. q is
    split as 256 hi + lo with hi = (q + 128) >> 8, so that two products of bytes make one of 16
    bits; lo = -128, which some instructions can't negate, becomes -127.
    """
    rounded, scale = _rounded(x, group, 32639.0, 2.0**-100, xp)
    q = xp.asarray(rounded, dtype=xp.int32)
    return xp.where((q + 128) % 256 == 0, q + 1, q), scale


def fake_quantize_int8(x: Array, amax: Array, xp: Any) -> Array:
    """float32 [..., k]: int8 with a scale of amax / 127; `amax` broadcasts against x. What lies
    beyond amax becomes amax.

    One for each token ([..., 1]: a8_token), one for all rows of a step (a8_tensor: a row's values
    then depend on its neighbours) or one fixed by calibration (a8_static).
    """
    nothing = amax < 2.0**-118
    most = xp.full_like(amax, 127.0)
    inverse = xp.where(nothing, xp.zeros_like(amax), most / xp.where(nothing, most, amax))
    scale = xp.where(nothing, xp.zeros_like(amax), amax / most)
    return xp.clip(xp.round(x * inverse), -127.0, 127.0) * scale


OUTLIER = 6.0  # LLM.int8()'s threshold (arXiv 2208.07339, section 3.2)


def fake_quantize_llm_int8(x: Array, xp: Any, threshold: float = OUTLIER) -> Array:
    """float32 [..., k]: LLM.int8()'s mixed decomposition (arXiv 2208.07339, eq. 8), row by row.

    Inputs beyond the threshold stay as they are; the rest is int8 with one scale per row, taken
    without them. The authors choose whole columns, by any row of the batch: then a text's numbers
    depend on its neighbours. Nothing is calibrated. Threshold 0 keeps all, infinity none.
    """
    outlier = xp.abs(x) > threshold
    rest = xp.where(outlier, xp.zeros_like(x), x)
    amax = xp.amax(xp.abs(rest), axis=-1, keepdims=True)
    return xp.where(outlier, x, fake_quantize_int8(rest, amax, xp))


def fake_quantize_a8(x: Array, group: int, xp: Any) -> Array:
    """float32 [..., k]: fl(scale * q), the values that an a8 product sees in place of x."""
    return _values(x, *quantize_a8(x, group, xp), xp)


def fake_quantize_a16(x: Array, group: int, xp: Any) -> Array:
    """float32 [..., k]: fl(scale * q), the values that an a16 product sees in place of x."""
    return _values(x, *quantize_a16(x, group, xp), xp)


def fake_quantize_a8a16(x: Array, group: int, ratio: float, xp: Any) -> Array:
    """float32 [..., k]: each row as a16 if it is peaked, else as a8."""
    wide = peaked(x, ratio, xp)[..., None]
    return xp.where(wide, fake_quantize_a16(x, group, xp), fake_quantize_a8(x, group, xp))


def peaked(x: Array, ratio: float, xp: Any) -> Array:
    """bool [...]: rows whose maximum exceeds `ratio` times their root mean square.

    max |x|^2 * k > ratio^2 * sum x^2, each operation in fp32; squares are added in 16 lanes (index
    mod 16), lanes folded 8, 4, 2, 1, as the kernels do.
    """
    k = x.shape[-1]
    squares = _grouped(x, UNIT, xp) ** 2
    blocks = xp.reshape(squares, (*x.shape[:-1], -1, 16))
    lanes = xp.zeros_like(blocks[..., 0, :])
    for i in range(blocks.shape[-2]):
        lanes = blocks[..., i, :] + lanes
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    peak = xp.amax(xp.abs(x), axis=-1)
    bound = xp.full_like(peak, ratio)
    return peak * peak * k > bound * bound * lanes[..., 0]


def _rounded(x: Array, group: int, top: float, least: float, xp: Any) -> tuple[Array, Array]:
    """rint(x * top / amax) as float32 [..., k_pad], and the scales."""
    grouped = _grouped(x, group, xp)
    amax = xp.amax(xp.abs(grouped), axis=-1, keepdims=True)
    nothing = amax < least
    zeros, most = xp.zeros_like(amax), xp.full_like(amax, top)
    inverse = xp.where(nothing, zeros, most / xp.where(nothing, xp.ones_like(amax), amax))
    q = xp.round(grouped * inverse)
    scale = xp.where(nothing, zeros, amax / most)
    return xp.reshape(q, (*q.shape[:-2], -1)), scale[..., 0]


def _values(x: Array, q: Array, scale: Array, xp: Any) -> Array:
    group = q.shape[-1] // scale.shape[-1]
    grouped = xp.reshape(xp.asarray(q, dtype=xp.float32), (*scale.shape, group))
    return xp.reshape(grouped * scale[..., None], q.shape)[..., : x.shape[-1]]


def _grouped(x: Array, group: int, xp: Any) -> Array:
    width = padded_width(x.shape[-1])
    assert group in (32, 64), group
    assert width % group == 0, (width, group)
    missing = width - x.shape[-1]
    if missing:
        x = xp.concatenate([x, *[xp.zeros_like(x[..., :1])] * missing], axis=-1)
    return xp.reshape(x, (*x.shape[:-1], width // group, group))
