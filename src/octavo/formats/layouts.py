"""Stored layouts: how the codes of one tensor lie in a file. Loss-free; formats don't know of them.

dense   as QuantizedTensor has them.
n:m     of every m consecutive codes of a row at most n aren't zero. `codes`: n of them, zeros among
        them where there are fewer, packed by row; `index`: which of the C(m, n) choices of places
        (in lexicographic order), in as few bits as count them, packed by row.
bitmask `mask`: a bit per code, set where it isn't zero, packed by row; `codes`: the others, row
        after row, packed as one run.
rxc     `mask`: a bit per block of r rows by c columns, set where it isn't all zeros, packed by row
        of blocks; `codes`: whole blocks, each row after row, packed as one run.
trits   of ternary formats: `codes`, less the smallest, five to a byte (trits.py).

Packing is that of packing.py, least significant bit first. A float counts as zero when all of its
bits are 0, so that -0 is kept. What else a tensor has (scales, zero points) stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError
from octavo.formats.codebooks import named_levels
from octavo.formats.floats import float_dtype
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits, packed_width, unpack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.trits import pack_trits, trits_width, unpack_trits

U8 = npt.NDArray[np.uint8]
Parts = dict[str, npt.NDArray[Any]]

DENSE, BITMASK, TRITS = "dense", "bitmask", "trits"
NATIVE, BLOCKS = "2:4", "16x32"  # what kernels multiply without expanding it first
PARTS = ("index", "mask")  # beside those of a QuantizedTensor
_N_OF_M = re.compile(r"([1-7]):([2-8])")
_BLOCK = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")
_GROUPS = (4, 8)  # of n:m
_LEAST_TRIT = np.uint8(1)  # codes of ternary formats are 1, 2 and 3


def chosen(tensor: QuantizedTensor) -> tuple[str, Parts]:
    """A layout for a tensor, and its parts that replace `codes`: 2:4 where codes of 4 or 8 bits
    keep to it, for kernels take them so; else the one of the fewest bytes."""
    zero = _zero_codes(tensor)
    if zero is None:
        return DENSE, {"codes": tensor.codes}
    codes = _elements(tensor)
    there = codes != zero
    best, parts = DENSE, {"codes": tensor.codes}
    candidates = _candidates(there)
    if NATIVE in candidates and tensor.format.kind == "int" and tensor.format.bits in (4, 8):
        candidates = [NATIVE]
    if is_ternary(tensor.format):
        best, parts = TRITS, {"codes": pack_trits(codes - _LEAST_TRIT)}
    for layout in candidates:
        made = _parts(codes, there, _bits(tensor.format), layout)
        if _float_like(tensor.format):
            made["codes"] = made["codes"].view(tensor.codes.dtype)
        if _nbytes(made) < _nbytes(parts):
            best, parts = layout, made
    return best, parts


class Stored:
    """The codes of a tensor in some layout, expanded row range by row range.

    parts  all arrays of the tensor, those of the layout among them. Raises FormatError for a layout
    that isn't known, doesn't divide the shape, or whose parts don't fit it.
    """

    def __init__(
        self, layout: str, format: NumberFormat, shape: tuple[int, int], parts: Mapping[str, Any]
    ) -> None:
        self.layout, self.format, self.shape = layout, format, shape
        self._parts = parts
        self._n, self._m = n_of_m(layout) or (0, 0)
        self._block = block_of(layout)
        self._check()

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Rows [start, stop) as a tensor of their own."""
        kept = {
            f".{name}": part[start:stop] if part.ndim > 1 and part.shape[0] > 1 else part
            for name, part in self._parts.items()
            if name not in ("codes", *PARTS)
        }
        zero = _zero_of(self.format, kept.get(".zeros"), kept.get(".codebook"))
        assert zero is not None
        if self.layout == TRITS:
            codes = unpack_trits(self._parts["codes"][start:stop], self.shape[1]) + _LEAST_TRIT
        else:
            there, values = self._found(start, stop)
            codes = np.empty(there.shape, values.dtype)
            codes[...] = _each(zero, there.shape)
            codes[there] = values
        kept[".codes"] = _packed(codes, self.format)
        return QuantizedTensor.from_state(kept, "", self.format, (stop - start, self.shape[1]))

    def _found(self, start: int, stop: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
        """Where codes are stored, and these in that order."""
        if self._m:
            return self._n_of_m_rows(start, stop)
        rows, columns = self._block or (1, 1)
        first, last = start // rows, -(-stop // rows)
        mask = unpack_bits(self._parts["mask"], 1, self.shape[1] // columns).astype(bool)
        before = int(mask[:first].sum()) * rows * columns
        mine = mask[first:last]
        values = self._run(before, int(mine.sum()) * rows * columns)
        if not self._block:
            return mine, values
        wide = np.zeros((*mine.shape, rows, columns), bool)
        wide[mine] = True
        there = wide.transpose(0, 2, 1, 3).reshape(-1, self.shape[1])
        codes = np.zeros(wide.shape, values.dtype)
        codes[mine] = values.reshape(-1, rows, columns)
        flat = codes.transpose(0, 2, 1, 3).reshape(there.shape)
        cut = slice(start - first * rows, stop - first * rows)
        return there[cut], flat[cut][there[cut]]

    def _n_of_m_rows(self, start: int, stop: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
        groups = self.shape[1] // self._m
        table = _choices(self._n, self._m)
        index = unpack_bits(self._parts["index"][start:stop], _index_bits(self._n, self._m), groups)
        if index.size and int(index.max()) >= len(table):
            raise FormatError(f"a {self.layout} index of {int(index.max())}: not one of its places")
        there = table[index].reshape(stop - start, self.shape[1])
        stored = self._parts["codes"][start:stop]
        if _float_like(self.format):
            return there, _as_bits(stored).reshape(-1)
        return there, unpack_bits(stored, self.format.bits, groups * self._n).reshape(-1)

    def _run(self, first: int, count: int) -> npt.NDArray[Any]:
        """Codes [first, first + count) of those packed as one run."""
        stored, bits = self._parts["codes"], self.format.bits
        if _float_like(self.format):
            return _as_bits(stored)[first : first + count]
        skipped = first // 8 * 8
        found = unpack_bits(stored[None, skipped * bits // 8 :], bits, first + count - skipped)
        return found[0, first - skipped :]

    def _check(self) -> None:
        for name, (shape, what) in self._wanted().items():
            part = self._parts.get(name)
            if part is None or part.shape != shape or (what and part.dtype != what):
                found = "none" if part is None else f"{part.dtype} {list(part.shape)}"
                raise FormatError(
                    f"{name} of a {self.layout} tensor of {list(self.shape)}: {list(shape)} "
                    f"expected, {found} given"
                )
        if self._zero_missing():
            raise FormatError(f"{self.format} has no zero that a {self.layout} layout leaves out")

    def _wanted(self) -> dict[str, tuple[tuple[int, ...], type[np.generic] | None]]:
        out, width = self.shape
        if self.layout == TRITS and is_ternary(self.format):
            return {"codes": ((out, trits_width(width)), np.uint8)}
        code = None if _float_like(self.format) else np.uint8
        if self._m and width % self._m == 0:
            groups = width // self._m
            each = groups * self._n
            codes = each if _float_like(self.format) else packed_width(each, self.format.bits)
            index = packed_width(groups, _index_bits(self._n, self._m))
            return {"codes": ((out, codes), code), "index": ((out, index), np.uint8)}
        rows, columns = self._block or (1, 1)
        if self._m or not (self._block or self.layout == BITMASK) or width % columns or out % rows:
            raise FormatError(f"{self.layout!r} is no layout of a tensor of {list(self.shape)}")
        wanted = {"mask": ((out // rows, packed_width(width // columns, 1)), np.uint8)}
        mask = self._parts.get("mask")
        if mask is None or mask.shape != wanted["mask"][0] or mask.dtype != np.uint8:
            return dict(wanted)
        count = int(unpack_bits(mask, 1, width // columns).sum()) * rows * columns
        length = count if _float_like(self.format) else packed_width(count, self.format.bits)
        return {**wanted, "codes": ((length,), code)}

    def _zero_missing(self) -> bool:
        found = self._parts.get
        return _zero_of(self.format, found("zeros"), found("codebook")) is None


def n_of_m(layout: str) -> tuple[int, int] | None:
    """(n, m) of an n:m layout."""
    found = _N_OF_M.fullmatch(layout)
    n, m = map(int, found.groups()) if found else (0, 0)
    return (n, m) if 0 < n < m else None


def block_of(layout: str) -> tuple[int, int] | None:
    """(rows, columns) of a layout of blocks."""
    found = _BLOCK.fullmatch(layout)
    return (int(found[1]), int(found[2])) if found else None


def is_ternary(format: NumberFormat) -> bool:
    """Whether codes are three, which trits hold."""
    return format.variant == "ternary"


def stored_bits(format: NumberFormat, shape: tuple[int, int]) -> float:
    """Bits of storage per weight of `shape` = (out, in) where nothing was pruned: those of the
    format, but that ternary codes lie five to a byte. Raises as `bits_per_value`."""
    dense = format.bits_per_value(shape)
    if not is_ternary(format):
        return dense
    return dense - format.bits + 8 * trits_width(shape[1]) / shape[1]


def _candidates(there: npt.NDArray[np.bool_]) -> list[str]:
    """Layouts that this tensor's zeros allow."""
    found = [BITMASK]
    for m in _GROUPS:
        if there.shape[1] % m == 0:
            most = max(1, int(there.reshape(-1, m).sum(1).max()))
            found += [f"{most}:{m}"] if most < m else []
    rows, columns = block_of(BLOCKS) or (1, 1)
    return found + [BLOCKS] * (there.shape[0] % rows == there.shape[1] % columns == 0)


def _parts(codes: npt.NDArray[Any], there: npt.NDArray[np.bool_], bits: int, layout: str) -> Parts:
    """`codes` as their bits, floats as unsigned integers of their size."""
    if choice := n_of_m(layout):
        index = _index(there, *choice)
        places = _choices(*choice)[index].reshape(codes.shape)
        stored = codes[places].reshape(codes.shape[0], -1)
        packed = pack_bits(index, _index_bits(*choice))
        return {"codes": _pack(stored, bits), "index": packed}
    rows, columns = block_of(layout) or (1, 1)
    blocks = codes.reshape(codes.shape[0] // rows, rows, -1, columns).transpose(0, 2, 1, 3)
    tiled = there.reshape(there.shape[0] // rows, rows, -1, columns)
    kept = np.asarray(tiled.any((1, 3)))
    mask = pack_bits(np.asarray(kept, np.uint8), 1)
    return {"codes": _pack(blocks[kept].reshape(1, -1), bits)[0], "mask": mask}


def _index(there: npt.NDArray[np.bool_], n: int, m: int) -> U8:
    """Of every group the first choice of n places that covers all that is there: [out, groups]."""
    patterns = there.reshape(there.shape[0], -1, m) @ (1 << np.arange(m))
    choices = _choices(n, m) @ (1 << np.arange(m))
    covers = (choices[None] & np.arange(1 << m)[:, None]) == np.arange(1 << m)[:, None]
    first: U8 = np.asarray(covers.argmax(1), np.uint8)
    index: U8 = np.take(first, patterns)
    return index


@lru_cache(maxsize=64)
def _choices(n: int, m: int) -> npt.NDArray[np.bool_]:
    """bool [C(m, n), m]: the places of each choice, in lexicographic order."""
    table = np.zeros((comb(m, n), m), bool)
    for row, places in enumerate(combinations(range(m), n)):
        table[row, list(places)] = True
    return table


def _index_bits(n: int, m: int) -> int:
    return (comb(m, n) - 1).bit_length()


def _zero_codes(tensor: QuantizedTensor) -> npt.NDArray[Any] | int | None:
    zero = _zero_of(tensor.format, tensor.zeros, tensor.codebook)
    return None if zero is None else _each(zero, tensor.shape)


def _zero_of(format: NumberFormat, zeros: Any, codebook: Any) -> npt.NDArray[Any] | int | None:
    """The code that stands for 0: one, one per group, or None where a format has none."""
    if format.kind == "float":
        return 0
    if format.zero == "int":
        points: U8 | None = None if zeros is None else np.asarray(zeros).view(np.uint8)
        return points
    if format.zero == "real" or format.variant == "binary" or format.run > 1:
        return None
    if format.kind == "int":
        return 1 << (format.bits - 1)
    levels = named_levels(format) if codebook is None else np.asarray(codebook)
    found = np.flatnonzero(levels == 0)
    return int(found[0]) if len(found) else None


def _each(zero: npt.NDArray[Any] | int, shape: tuple[int, ...]) -> npt.NDArray[Any] | int:
    if isinstance(zero, int):
        return zero
    each: npt.NDArray[Any] = np.repeat(zero, shape[1] // zero.shape[1], axis=1)
    return each


def _float_like(format: NumberFormat) -> bool:
    return format.kind == "float"


def _bits(format: NumberFormat) -> int:
    """Of a packed code; 0: values stand on their own."""
    return 0 if _float_like(format) else format.bits


def _as_bits(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.view(f"u{values.dtype.itemsize}")


def _elements(tensor: QuantizedTensor) -> npt.NDArray[Any]:
    """[out, in]: a code, or the bits of a float, for each weight."""
    if _float_like(tensor.format):
        return _as_bits(np.ascontiguousarray(tensor.codes))
    return tensor.unpacked_codes()


def _pack(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    return pack_bits(codes, bits) if bits else codes


def _packed(codes: npt.NDArray[Any], format: NumberFormat) -> npt.NDArray[Any]:
    if _float_like(format):
        return codes.view(float_dtype(format.variant))
    return pack_bits(codes, format.bits)


def _nbytes(parts: Parts) -> int:
    return sum(part.nbytes for part in parts.values())
