"""Rotary frequencies and tables in numpy, one source for every backend.

Frequencies follow transformers' ROPE_INIT_FUNCTIONS operation by operation in fp32. Only the power
theta ** (2i / dim) is taken in double and rounded: powf differs between libraries and CPUs by an
ulp or two, and a table must not.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from octavo.spec.decoder import RopeScaling, RopeSpec

F32 = npt.NDArray[np.float32]


def inverse_frequencies(rope: RopeSpec, context: int) -> F32:
    """Radians per position of each rotated pair, float32 [dim / 2].

    `context` is the longest sequence that will be served: it picks longrope's long factors and
    stretches dynamic scaling. It is fixed for a load, so that a token's numbers don't depend on
    how long its sequence has become.
    """
    scaling = rope.scaling
    if scaling is None:
        return _inverse(_powers(rope.theta, rope.dim))
    match scaling.kind:
        case "linear":
            return _fp32(_inverse(_powers(rope.theta, rope.dim)) / np.float32(scaling.factor))
        case "dynamic":
            return _inverse(_powers(_dynamic_theta(rope, scaling, context), rope.dim))
        case "llama3":
            return _llama3(_inverse(_powers(rope.theta, rope.dim)), scaling)
        case "yarn":
            return _yarn(rope, scaling)
        case "longrope":
            long = context > scaling.original_max_positions
            factors = scaling.long_factor if long else scaling.short_factor
            return _inverse(_fp32(factors) * _powers(rope.theta, rope.dim))


def attention_factor(rope: RopeSpec) -> float:
    """What cosine and sine are multiplied by: 1 except for yarn and longrope."""
    scaling = rope.scaling
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "longrope":
        log = math.log(max(scaling.factor, 1.0)) / math.log(scaling.original_max_positions)
        return math.sqrt(1 + log)
    if scaling.mscale and scaling.mscale_all_dim:
        numerator = _yarn_mscale(scaling.factor, scaling.mscale)
        return numerator / _yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return _yarn_mscale(scaling.factor, 1.0)


def cos_sin(rope: RopeSpec, positions: npt.ArrayLike, context: int) -> tuple[F32, F32]:
    """Cosine and sine tables, float32 [n, dim / 2] each, attention factor included.

    The angle is an fp32 product, as models were trained with it; its cosine and sine are exact to
    the last bit of fp32 (docs/numerics.md).
    """
    at = np.asarray(positions).astype(np.float32)
    angle = (at[:, None] * inverse_frequencies(rope, context)[None, :]).astype(np.float64)
    factor = np.float32(attention_factor(rope))
    return np.cos(angle).astype(np.float32) * factor, np.sin(angle).astype(np.float32) * factor


def _powers(theta: float, dim: int) -> F32:
    """theta ** (2i / dim), the exponent in fp32."""
    exponent = np.arange(0, dim, 2).astype(np.float32) / np.float32(dim)
    return _fp32(np.power(np.float64(np.float32(theta)), exponent.astype(np.float64)))


def _inverse(x: F32) -> F32:
    return _fp32(np.float32(1) / x)


def _fp32(x: npt.ArrayLike) -> F32:
    return np.asarray(x, np.float32)


def _dynamic_theta(rope: RopeSpec, scaling: RopeScaling, context: int) -> float:
    """NTK-aware stretching of theta once the context exceeds what the model was made for."""
    trained = scaling.original_max_positions
    stretch = scaling.factor * max(context, trained) / trained - (scaling.factor - 1)
    return float(rope.theta * stretch ** (rope.dim / (rope.dim - 2)))


def _llama3(inverse: F32, scaling: RopeScaling) -> F32:
    """Slow pairs are divided by the factor, fast ones kept, those between interpolated."""
    if scaling.short_factor:  # a GGUF stores the quotients themselves
        return _fp32(inverse / _fp32(scaling.short_factor))
    trained, factor = scaling.original_max_positions, np.float32(scaling.factor)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # torch divides a number by a tensor as reciprocal times number: two roundings
    wavelength = _inverse(inverse) * np.float32(2 * math.pi)
    slow = wavelength > np.float32(trained / low)
    fast = wavelength < np.float32(trained / high)
    scaled = np.where(slow, inverse / factor, inverse)
    turns = _inverse(wavelength) * np.float32(trained)
    smooth = (turns - np.float32(low)) / np.float32(high - low)
    between = (np.float32(1) - smooth) * scaled / factor + smooth * scaled
    return _fp32(np.where(~slow & ~fast, between, scaled))


def _yarn(rope: RopeSpec, scaling: RopeScaling) -> F32:
    """YaRN (arXiv 2309.00071): interpolate slow pairs, keep fast ones, a ramp between."""
    powers = _powers(rope.theta, rope.dim)
    kept, interpolated = _inverse(powers), _inverse(np.float32(scaling.factor) * powers)
    low, high = _yarn_range(rope, scaling)
    index = np.arange(rope.dim // 2, dtype=np.float32)
    ramp = np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = np.float32(1) - ramp
    return _fp32(interpolated * (np.float32(1) - keep) + kept * keep)


def _yarn_range(rope: RopeSpec, scaling: RopeScaling) -> tuple[float, float]:
    """First and last pair of the ramp: those that turn beta_fast and beta_slow times."""

    def pair(turns: float) -> float:
        length = scaling.original_max_positions / (turns * 2 * math.pi)
        return (rope.dim * math.log(length)) / (2 * math.log(rope.theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn_mscale(scale: float, mscale: float) -> float:
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0
