"""`QuantizedTensor`: canonical codes and their parameters; `AffineRows`: what kernels pack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError
from octavo.formats.codebooks import float8_levels, named_levels
from octavo.formats.floats import float_dtype
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import packed_width, unpack_bits
from octavo.formats.trellis import windows

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]


class AffineRows(NamedTuple):
    """The one view that every integer or codebook format offers to the native packer.

    `w[r, k] = fl(fl(scale * v) + offset)`, v being `codes[r, k] - zero` or `levels[codes[r, k]]`;
    without offsets there is no addition. Scale and offset are those of group `k // group`:
    `scales[r, g]` and `offsets[r, g]`, or with two levels `scales[r, s] * subs[r, g]` and
    `offsets[r, s] * sub_offsets[r, g]` (exact), s being the super-group of g.
    """

    codes: U8  # [rows, k], unsigned; on a trellis the windows
    zero: int
    levels: F32 | None  # of a codebook, as many as the format has
    scales: F32  # [rows, k / group], the stored scales widened (exact); or [rows, supers]
    offsets: F32 | None  # shaped as scales
    group: int
    zeros: U8 | None = None  # [rows, k / group]: zero points in place of `zero`, which is then 0
    subs: I16 | None = None  # [rows, k / group]
    sub_offsets: I16 | None = None  # [rows, k / group]

    def one_level(self) -> AffineRows:
        """The same with a scale per group in place of two levels."""
        if self.subs is None:
            return self
        return self._replace(
            scales=_under(self.scales, self.subs),
            offsets=_under(self.offsets, self.sub_offsets),
            subs=None,
            sub_offsets=None,
        )


def _under(supers: F32 | None, subs: I16 | None) -> Any:
    if supers is None or subs is None:
        return supers
    return np.repeat(supers, subs.shape[1] // supers.shape[1], axis=1) * subs.astype(np.float32)


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A weight of `shape` = (out, in) as stored. Not an array subclass: this is all it does.

    Values are `fl(fl(s * (q - z)) + m)`; s and m are the stored ones times `tensor_scale`. Arrays
    of another shape or type than the format asks for raise FormatError.

    codes         ints and codebooks: uint8 [out, ceil(in * bits / 8)], little-endian bit packing
                  along `in`, element i at bit i * bits, unsigned (stored value = q + 2**(bits-1)
                  for symmetric ints; binary: 0 and 1). Floats: the values themselves, [out, in]
                  (ml_dtypes for bf16 and fp8).
    scales        [out or 1, groups] in the stored type (two-level: int8 or uint8 sub-scales), or
                  None (plain floats).
    zeros         integer zero points uint8 [out or 1, groups] (zero="int"), or real offsets in the
                  scale's type (zero="real"; uint8 sub-offsets when two-level), or None.
    super_scales  [out, supers] fp16 when two-level; super_zeros likewise for the offsets.
    codebook      levels, float32 [2**bits], when kind is "codebook" (of a trellis [256]); None
                  stands for the levels that a named codebook has anyway.
    tensor_scale  one fp32 factor of every scale and offset (1 for imports).
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

    def __post_init__(self) -> None:
        for name, (dtype, shape) in _layout(self.format, self.shape).items():
            _check_part(self, name, dtype, shape)
        for name in _PARTS:
            if getattr(self, name) is not None and name not in _layout(self.format, self.shape):
                raise FormatError(f"a tensor of {self.format} has no {name}")
        _check_codebook(self)
        if not (math.isfinite(self.tensor_scale) and self.tensor_scale > 0):
            raise FormatError(
                f"tensor_scale is {self.tensor_scale}; it must be finite and positive"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays as they stand here."""
        return sum(getattr(self, name).nbytes for name in _present(self))

    def unpacked_codes(self) -> U8:
        """uint8 [out, in]: one code a byte (8-bit floats: their bytes)."""
        if self.format.kind == "float":
            if self.format.bits != 8:
                raise FormatError(f"{self.format} stores values, not codes")
            return self.codes.view(np.uint8)
        return unpack_bits(self.codes.view(np.uint8), self.format.bits, self.shape[1])

    def steps(self) -> F32:
        """float32 [out or 1, groups]: the scale of each group as it multiplies."""
        if self.scales is None:
            return np.ones((1, 1), np.float32)
        return self._widened(self.scales, self.super_scales)

    def offsets(self) -> F32 | None:
        """float32 [out or 1, groups]: what is added to each group, or None."""
        if self.format.zero != "real":
            return None
        assert self.zeros is not None
        wide = self._widened(self.zeros, self.super_zeros)
        return wide if self.super_zeros is None else -wide

    def affine(self) -> AffineRows:
        """This tensor as the native packer takes it; exact. Raises FormatError for 16 and 32-bit
        floats."""
        format, codes = self.format, self._level_codes()
        zero, levels, zeros = 0, None, None
        if format.kind == "float":
            levels = float8_levels(format.variant)
        elif format.kind == "codebook":
            levels = self._levels()
        elif format.variant == "binary":
            codes, zero = codes * np.uint8(2), 1
        elif format.zero == "none":
            zero = 2 ** (format.bits - 1)
        elif format.zero == "int":
            zeros = self._per_row(self.zeros)
        scales, offsets, subs, sub_offsets = self._tables()
        group = self.shape[1] // (scales if subs is None else subs).shape[1]
        return AffineRows(codes, zero, levels, scales, offsets, group, zeros, subs, sub_offsets)

    def dequantize(self) -> F32:
        """float32 [out, in]: the values, bit for bit what every kernel's weights are."""
        if self.format.plain:
            return self.codes.astype(np.float32)
        steps, offsets = self.steps(), self.offsets()
        grouped = self._units().reshape(self.shape[0], steps.shape[1], -1)
        grouped *= steps[:, :, None]
        if offsets is not None:
            grouped += offsets[:, :, None]
        return grouped.reshape(self.shape)

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Output rows [start, stop) as a tensor of its own; arrays are views."""
        if not 0 <= start < stop <= self.shape[0]:
            raise FormatError(f"rows {start} to {stop} of a tensor of {self.shape[0]} rows")
        kept = {
            name: part[start:stop] if name != "codebook" and part.shape[0] > 1 else part
            for name, part in _present(self).items()
        }
        return _build(self.format, (stop - start, self.shape[1]), kept, self.tensor_scale)

    def state(self, prefix: str) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays by name: `<prefix>.codes`, `<prefix>.scales` and so on."""
        named = {f"{prefix}.{name}": part for name, part in _present(self).items()}
        if self.tensor_scale != 1.0:
            named[f"{prefix}.tensor_scale"] = np.array([self.tensor_scale], np.float32)
        return named

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, npt.NDArray[np.generic]],
        prefix: str,
        format: NumberFormat,
        shape: tuple[int, int],
    ) -> QuantizedTensor:
        """The inverse of `state`. Unknown, missing or ill-shaped arrays, and codes or zero points
        that the format doesn't have, raise FormatError."""
        found = {
            key.removeprefix(f"{prefix}."): array
            for key, array in state.items()
            if key.startswith(f"{prefix}.")
        }
        unknown = sorted(found.keys() - {*_PARTS, "tensor_scale"})
        if unknown:
            raise FormatError(f"{prefix}: unknown parts {', '.join(unknown)}")
        factor = found.pop("tensor_scale", np.ones(1, np.float32))
        if factor.shape != (1,) or factor.dtype != np.float32:
            raise FormatError(f"{prefix}.tensor_scale must be float32 [1], not {factor.dtype}")
        tensor = _build(format, shape, found, float(factor.astype(np.float32)[0]))
        _check_values(tensor)
        return tensor

    def _widened(
        self, stored: npt.NDArray[np.generic], supers: npt.NDArray[np.generic] | None
    ) -> F32:
        wide: F32 = stored.astype(np.float32)
        if supers is not None:
            per_super = wide.shape[1] // supers.shape[1]
            wide *= np.repeat(supers.astype(np.float32), per_super, axis=1)
        wide *= np.float32(self.tensor_scale)
        return wide

    def _levels(self) -> F32:
        return named_levels(self.format) if self.codebook is None else self.codebook

    def _level_codes(self) -> U8:
        """uint8 [out, in]: what picks the level of each weight; but for a trellis, its code."""
        if self.format.run > 1:
            return windows(self.codes.view(np.uint8))
        return self.unpacked_codes()

    def _units(self) -> F32:
        """float32 [out, in]: what the scale multiplies (q - z, or a level, or a float)."""
        format = self.format
        if format.kind == "float":
            return self.codes.astype(np.float32)
        codes = self._level_codes()
        if format.kind == "codebook":
            return self._levels()[codes]
        if format.variant == "binary":
            return codes.astype(np.float32) * 2 - 1
        units = codes.astype(np.float32)
        if format.zero == "none":
            units -= np.float32(2 ** (format.bits - 1))
        elif format.zero == "int":
            units -= self._zero_of_each().astype(np.float32)
        return units

    def _zero_of_each(self) -> U8:
        """uint8 [out, in]: the zero point of every code."""
        assert self.zeros is not None
        zeros = self._per_row(self.zeros.view(np.uint8))
        return np.repeat(zeros, self.shape[1] // zeros.shape[1], axis=1)

    def _per_row(self, per_group: Any) -> Any:
        if per_group is None:
            return None
        return np.ascontiguousarray(np.broadcast_to(per_group, (self.shape[0], per_group.shape[1])))

    def _tables(self) -> tuple[F32, F32 | None, I16 | None, I16 | None]:
        """Scales, offsets, sub-scales and sub-offsets per row. Two levels under a tensor scale
        become one, for only the product of super and sub is exact."""
        if self.super_scales is None or self.tensor_scale != 1.0:
            return self._per_row(self.steps()), self._per_row(self.offsets()), None, None
        assert self.scales is not None
        supers, subs = self.super_scales.astype(np.float32), self.scales.astype(np.int16)
        if self.zeros is None or self.super_zeros is None:
            return supers, None, subs, None
        return supers, -self.super_zeros.astype(np.float32), subs, self.zeros.astype(np.int16)


_PARTS = ("codes", "scales", "zeros", "super_scales", "super_zeros", "codebook")

_Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def _layout(format: NumberFormat, shape: tuple[int, int]) -> _Layout:
    """Type and shape of every array a format needs."""
    rows, per_row, _ = format.groups(shape)
    byte = np.dtype(np.uint8)
    if format.kind == "float":
        parts: _Layout = {"codes": (float_dtype(format.variant), shape)}
    else:
        parts = {"codes": (byte, (shape[0], packed_width(shape[1], format.bits)))}
    if format.plain:
        return parts
    scale = _scale_dtype(format)
    parts["scales"] = (scale, (rows, per_row))
    if format.zero != "none":
        zero = scale if format.zero == "real" and not format.super_scale else byte
        parts["zeros"] = (zero, (rows, per_row))
    if format.super_scale:
        supers = (np.dtype(np.float16), (shape[0], format.supers(shape)))
        parts["super_scales"] = supers
        if format.zero == "real":
            parts["super_zeros"] = supers
    if format.kind == "codebook":
        parts["codebook"] = (np.dtype(np.float32), (format.levels,))
    return parts


def _scale_dtype(format: NumberFormat) -> np.dtype[Any]:
    if format.super_scale:
        return np.dtype(np.int8 if format.super_scale.signed else np.uint8)
    return float_dtype(format.scale)


def _check_part(
    tensor: QuantizedTensor, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    part = getattr(tensor, name)
    wanted = f"{name} of a {tensor.format} tensor of {list(tensor.shape)}: {dtype} {list(shape)}"
    if part is None:
        if name == "codebook" and tensor.format.variant != "learned":
            return
        raise FormatError(f"{wanted} expected, none given")
    if part.dtype != dtype or part.shape != shape:
        raise FormatError(f"{wanted} expected, {part.dtype} {list(part.shape)} given")


def _check_codebook(tensor: QuantizedTensor) -> None:
    if tensor.codebook is None or tensor.format.variant == "learned":
        return
    if not np.array_equal(tensor.codebook, named_levels(tensor.format)):
        raise FormatError(f"{tensor.format} has levels of its own; other levels were given")


def _check_values(tensor: QuantizedTensor) -> None:
    """What only a look at every value can tell; for tensors that come from a file."""
    format = tensor.format
    if format.variant == "ternary" and not np.all(tensor.unpacked_codes()):
        raise FormatError(f"{format}: code 0 stands for no value")
    if format.zero == "int" and tensor.zeros is not None:
        largest = int(tensor.zeros.view(np.uint8).max())
        if largest >= 2**format.bits:
            raise FormatError(f"{format}: a zero point of {largest} exceeds {format.bits} bits")


def _present(tensor: QuantizedTensor) -> dict[str, npt.NDArray[np.generic]]:
    parts = {name: getattr(tensor, name) for name in _PARTS}
    return {name: part for name, part in parts.items() if part is not None}


def _build(
    format: NumberFormat,
    shape: tuple[int, int],
    parts: Mapping[str, npt.NDArray[Any]],
    tensor_scale: float,
) -> QuantizedTensor:
    if "codes" not in parts:
        raise FormatError(f"a {format} tensor of {list(shape)} needs codes; none given")
    return QuantizedTensor(
        format,
        shape,
        parts["codes"],
        parts.get("scales"),
        parts.get("zeros"),
        parts.get("super_scales"),
        parts.get("super_zeros"),
        parts.get("codebook"),
        tensor_scale,
    )
