"""`QuantizedTensor`: canonical codes and their parameters; `AffineRows`: what kernels pack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.formats.number_format import NumberFormat

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class AffineRows(NamedTuple):
    """The one view that every integer or codebook format offers to the native packer.

    `w[r, k] = fl(fl(scales[r, k // group] * v) + offsets[r, k // group])`, v being
    `codes[r, k] - zero` or `levels[codes[r, k]]`; without offsets there is no addition.
    """

    codes: U8  # [rows, k], unsigned
    zero: int
    levels: F32 | None  # [2**bits] of a codebook
    scales: F32  # [rows, k / group], the stored scales widened (exact)
    offsets: F32 | None  # [rows, k / group]
    group: int


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A weight of `shape` = (out, in) as stored. Not an array subclass: this is all it does.

    codes         ints and codebooks: uint8 [out, ceil(in * bits / 8)], little-endian bit packing
                  along `in`, element i at bit i * bits, unsigned (stored value = q + 2**(bits-1)
                  for symmetric ints). Floats: the values themselves, [out, in] (ml_dtypes for bf16
                  and fp8).
    scales        [out or 1, groups] in the stored type, or None (plain floats).
    zeros         integer zero points [out or 1, groups] (zero="int"), or real offsets
                  (zero="real"), or None.
    super_scales  [out, supers] fp16 when two-level; super_zeros likewise for the offsets.
    codebook      levels, float32 [2**bits], when kind is "codebook".
    tensor_scale  one fp32 factor of every scale (1 for imports).
    """

    format: NumberFormat
    shape: tuple[int, int]
    codes: npt.NDArray[np.generic]
    scales: npt.NDArray[np.generic] | None = None
    zeros: npt.NDArray[np.generic] | None = None
    super_scales: npt.NDArray[np.generic] | None = None
    super_zeros: npt.NDArray[np.generic] | None = None
    codebook: F32 | None = None
    tensor_scale: float = 1.0
