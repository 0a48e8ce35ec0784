"""Counter-based randomness: Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers").

A draw is a pure function of (seed, position, choice, kind): no stream, no state, so that what else
is in a batch, or the order of steps, can't change it. `docs/numerics.md` fixes the counter's words.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
F64 = npt.NDArray[np.float64]

KIND_SAMPLE = 0  # the draw that chooses a token

_ROUNDS = 10
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


class Words(NamedTuple):
    """Four 32-bit words: a counter, or the random block that it gives."""

    x0: int
    x1: int
    x2: int
    x3: int


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """One block. Words and keys are integers in 0 .. 2^32 - 1."""
    k0, k1 = key
    x0, x1, x2, x3 = counter
    for _ in range(_ROUNDS):
        high0, low0 = divmod(x0 * _MULTIPLIER_0, 1 << 32)
        high1, low1 = divmod(x2 * _MULTIPLIER_1, 1 << 32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return Words(x0, x1, x2, x3)


def philox_array(counters: U32, keys: U32) -> U32:
    """Many blocks at once: counters uint32 [n, 4], keys uint32 [n, 2] -> uint32 [n, 4]."""
    wide = counters.astype(np.uint64)
    x0, x1, x2, x3 = (wide[:, i] for i in range(4))
    k0, k1 = (keys.astype(np.uint64)[:, i] for i in range(2))
    mask, shift = np.uint64(_MASK), np.uint64(32)
    for _ in range(_ROUNDS):
        product0, product1 = x0 * np.uint64(_MULTIPLIER_0), x2 * np.uint64(_MULTIPLIER_1)
        x0, x2 = (product1 >> shift) ^ x1 ^ k0, (product0 >> shift) ^ x3 ^ k1
        x1, x3 = product1 & mask, product0 & mask
        k0, k1 = (k0 + np.uint64(_WEYL_0)) & mask, (k1 + np.uint64(_WEYL_1)) & mask
    return np.stack([x0, x1, x2, x3], axis=1).astype(np.uint32)


def uniform(seed: int, position: int, choice: int = 0, kind: int = KIND_SAMPLE) -> float:
    """A number in [0, 1) with 53 bits. seed is 64 bits wide; `position` is the new token's."""
    block = philox(Words(position, choice, kind, 0), (seed & _MASK, seed >> 32))
    return ((block.x0 << 21) + (block.x1 >> 11)) * 2.0**-53


def uniform_array(
    seed: int, positions: npt.ArrayLike, choice: int = 0, kind: int = KIND_SAMPLE
) -> F64:
    """`uniform` for many positions of one seed: float64 [n]."""
    position = np.asarray(positions, np.uint32)
    counters = np.zeros((position.size, 4), np.uint32)
    counters[:, 0], counters[:, 1], counters[:, 2] = position, choice, kind
    keys = np.empty((position.size, 2), np.uint32)
    keys[:, 0], keys[:, 1] = seed & _MASK, seed >> 32
    block = philox_array(counters, keys).astype(np.uint64)
    bits = (block[:, 0] << np.uint64(21)) + (block[:, 1] >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53
