"""GPTQ checkpoints, as AutoGPTQ and GPTQModel write them (arXiv 2210.17323).

Of a layer of `in` inputs and `out` outputs at b bits: `qweight` int32 [in * b / 32, out], a column
holding its codes as one little-endian bit stream; `qzeros` int32 [groups, out * b / 32], a row
likewise; `scales` [groups, out]; `g_idx` int32 [in], the group of each input. In the older of two
conventions ("gptq") one was subtracted from every zero point before it was packed. The value is
`scale * (code - zero)`; here exact, in the tools' kernels rounded to 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from octavo.core.errors import UnsupportedError
from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.packing import unpack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.io.foreign.module import SCALE_TYPES, Array, Decoded, Module, expanded

_BITS = (2, 3, 4, 8)
_FORMATS = ("gptq", "gptq_v2")


@dataclass(frozen=True, slots=True)
class Gptq:
    """`group` is -1 when an output row shares one scale; `zero_less_one`: the older convention."""

    tool: ClassVar[str] = "gptq"
    keys: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    markers: ClassVar[tuple[str, ...]] = ("qweight",)
    ignored: ClassVar[tuple[str, ...]] = ()

    bits: int
    group: int
    zero_less_one: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Gptq:
        """From config.json's `quantization_config`. Raises UnsupportedError."""
        bits, group = config.get("bits"), config.get("group_size", -1)
        kind = config.get("checkpoint_format") or config.get("format") or "gptq"
        if bits not in _BITS or type(group) is not int or not (group == -1 or group > 0):
            raise UnsupportedError(
                f"GPTQ of {bits!r} bits in groups of {group!r} can't be read; bits may be 2, 3, 4 "
                "or 8, a group -1 or positive. Use the original checkpoint."
            )
        if kind not in _FORMATS:
            raise UnsupportedError(
                f"GPTQ stored as {kind!r} can't be read, only {' and '.join(_FORMATS)}. Use the "
                "original checkpoint."
            )
        if config.get("dynamic"):
            raise UnsupportedError(
                "GPTQ with settings per layer (`dynamic`) can't be read. Use the original "
                "checkpoint."
            )
        return cls(bits, group, kind == "gptq")

    def decode(self, module: Module) -> Decoded:
        out, width = module.shape
        size = width if self.group == -1 else self.group
        groups = -(-width // size)
        scales = module.array("scales", tuple(SCALE_TYPES), (groups, out))
        zeros = self._zeros(module, groups)
        words = module.array("qweight", ("I32",), (width * self.bits // 32, out))
        order = self._order(module, size, groups)
        if order is not None or width % size:
            idx = np.arange(width) // size if order is None else order
            why = "its inputs are ordered by activation" if width % size == 0 else "a ragged group"
            return Decoded(
                FP32, lambda: expanded(_values(words, scales, zeros, idx, self.bits)), why
            )
        middle = 1 << (self.bits - 1)
        symmetric = bool(np.all(zeros == middle))
        format = self._format(module, symmetric, size)
        return Decoded(
            format,
            lambda: QuantizedTensor(
                format=format,
                shape=module.shape,
                codes=_streams(words),
                scales=np.ascontiguousarray(scales.T),
                zeros=None if symmetric else np.ascontiguousarray(zeros.T),
            ),
        )

    def _format(self, module: Module, symmetric: bool, size: int) -> NumberFormat:
        where = "channel" if size == module.shape[1] else f"g{size}"
        zero = "" if symmetric else "_asym"
        return NumberFormat.parse(f"int{self.bits}_{where}{zero}_s{module.scale_type('scales')}")

    def _zeros(self, module: Module, groups: int) -> npt.NDArray[np.uint8]:
        """uint8 [groups, out]. GPTQModel adds 1 to whole words, which carries over; so do we."""
        out = module.shape[0]
        words = module.array("qzeros", ("I32",), (groups, out * self.bits // 32)).view(np.uint32)
        if self.zero_less_one and self.bits != 3:
            ones = sum(1 << shift for shift in range(0, 32, self.bits))
            words = words + np.uint32(ones)
        packed = np.ascontiguousarray(words).view(np.uint8).reshape(groups, -1)
        zeros = unpack_bits(packed, self.bits, out)
        if self.zero_less_one and self.bits == 3:
            zeros = (zeros + np.uint8(1)) & np.uint8(7)
        return zeros

    def _order(self, module: Module, size: int, groups: int) -> Array | None:
        """The group of each input where that isn't simply the inputs' order; else None."""
        width = module.shape[1]
        if not module.has("g_idx"):
            return None
        order = module.array("g_idx", ("I32",), (width,))
        if np.array_equal(order, np.arange(width) // size):
            return None
        if order.min() < 0 or order.max() >= groups:
            raise module.damaged("g_idx", f"names a group outside 0 to {groups - 1}")
        return order


def _streams(words: Array) -> npt.NDArray[np.uint8]:
    """int32 [words, out] -> uint8 [out, bytes]: each column's bit stream, as we pack codes."""
    return np.ascontiguousarray(words.T).view(np.uint8).reshape(words.shape[1], -1)


def _values(
    words: Array, scales: Array, zeros: npt.NDArray[np.uint8], order: Array, bits: int
) -> npt.NDArray[np.float32]:
    codes = unpack_bits(_streams(words), bits, order.size).astype(np.float32)
    codes -= zeros[order].T
    codes *= scales.astype(np.float32)[order].T
    return codes
