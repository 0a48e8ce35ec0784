"""Little-endian bit packing along the last axis: element i starts at bit i * bits of its row."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]


def packed_width(n: int, bits: int) -> int:
    """Bytes of a row of n codes."""
    return (n * bits + 7) // 8


def pack_bits(codes: U8, bits: int) -> U8:
    """uint8 [..., n] of codes below 2**bits (1 <= bits <= 8) -> uint8 [..., ceil(n * bits / 8)].

    The unused high bits of the last byte are 0.
    """
    per_cycle, cycle_bytes = _cycle(bits)
    n = codes.shape[-1]
    cycles = _cycles(_padded(codes, per_cycle), per_cycle)
    out = np.zeros((*cycles.shape[:-1], cycle_bytes), np.uint8)
    for i in range(per_cycle):
        byte, shift = divmod(i * bits, 8)
        wide = cycles[..., i].astype(np.uint16) << shift
        out[..., byte] |= (wide & 0xFF).astype(np.uint8)
        if shift + bits > 8:  # the code straddles two bytes
            out[..., byte + 1] |= (wide >> 8).astype(np.uint8)
    packed: U8 = out.reshape(*codes.shape[:-1], -1)[..., : packed_width(n, bits)]
    return np.ascontiguousarray(packed)


def unpack_bits(packed: U8, bits: int, n: int) -> U8:
    """The inverse of `pack_bits`: the first n codes of each row, uint8 [..., n]."""
    per_cycle, cycle_bytes = _cycle(bits)
    cycles = _cycles(_padded(packed, cycle_bytes), cycle_bytes)
    out = np.empty((*cycles.shape[:-1], per_cycle), np.uint8)
    mask = np.uint16((1 << bits) - 1)
    for i in range(per_cycle):
        byte, shift = divmod(i * bits, 8)
        wide = cycles[..., byte].astype(np.uint16)
        if shift + bits > 8:
            wide |= cycles[..., byte + 1].astype(np.uint16) << 8
        out[..., i] = ((wide >> shift) & mask).astype(np.uint8)
    codes: U8 = out.reshape(*packed.shape[:-1], -1)[..., :n]
    return np.ascontiguousarray(codes)


def _cycle(bits: int) -> tuple[int, int]:
    """Codes, and bytes, after which the pattern of bit positions repeats."""
    assert 1 <= bits <= 8, bits
    bytes_per_cycle = bits // math.gcd(bits, 8)
    return 8 * bytes_per_cycle // bits, bytes_per_cycle


def _padded(array: U8, multiple: int) -> U8:
    missing = -array.shape[-1] % multiple
    if not missing:
        return array
    return np.concatenate([array, np.zeros((*array.shape[:-1], missing), np.uint8)], axis=-1)


def _cycles(array: U8, size: int) -> U8:
    return array.reshape(*array.shape[:-1], array.shape[-1] // size, size)
