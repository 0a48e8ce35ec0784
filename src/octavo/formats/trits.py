"""Five trits a byte: 3^5 = 243 of 256, 1.6 bits for each of three values (arXiv 2402.17764, whose
1.58 is log2 of 3).

Byte b of a row holds elements 5b to 5b + 4, element 5b + i as the digit of 3^i; what a row's last
byte has over is 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError

U8 = npt.NDArray[np.uint8]

PER_BYTE = 5
_POWERS = 3 ** np.arange(PER_BYTE)
_BYTES = int(3**PER_BYTE)


def trits_width(n: int) -> int:
    """Bytes of a row of n trits."""
    return -(-n // PER_BYTE)


def pack_trits(trits: U8) -> U8:
    """uint8 [rows, n] of 0 to 2 -> uint8 [rows, ceil(n / 5)]."""
    rows, n = trits.shape
    padded = np.pad(trits, ((0, 0), (0, -n % PER_BYTE)))
    digits = padded.reshape(rows, trits_width(n), PER_BYTE)
    return np.asarray(digits @ _POWERS, np.uint8)


def unpack_trits(packed: U8, n: int) -> U8:
    """The inverse of `pack_trits`: uint8 [rows, n].

    Raises FormatError for a byte that stands for no five trits.
    """
    if packed.size and int(packed.max()) >= _BYTES:
        raise FormatError(f"a byte of {int(packed.max())} where five trits take at most 242")
    table = (np.arange(_BYTES)[:, None] // _POWERS % 3).astype(np.uint8)
    trits: U8 = table[packed].reshape(len(packed), -1)[:, :n]
    return np.ascontiguousarray(trits)
