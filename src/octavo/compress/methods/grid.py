"""The grid of an encoding, for encoders that choose other codes on the same scales."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from octavo.core.errors import FormatError
from octavo.formats.codebooks import named_levels
from octavo.formats.granularity import PerChannel
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import Convention, resolve_convention
from octavo.formats.rtn import encode


class Grid:
    """Scales, zero points and offsets, as stored, that round to nearest gives `weight` [out, in].

    Of weights' type; scales are rounded to what is stored before anything is divided by them, and
    rounding is that of formats/rounding.py, bit for bit on fp32. Ints (not binary) and codebooks
    with levels of their own; anything else raises FormatError.
    """

    def __init__(
        self, weight: Tensor, target: NumberFormat, convention: Convention | None = None
    ) -> None:
        if target.kind == "float" or target.variant in ("binary", "learned"):
            raise FormatError(f"{target} has no grid of codes to choose from: use int, ternary")
        self.format = target
        self.convention = resolve_convention(target, convention)
        self._stored = self._encoded(weight)
        self._like = weight
        self.step = self._per_group(self._stored.steps())
        self.group = weight.shape[1] // len(self.step)
        offsets = self._stored.offsets()
        self.offset = None if offsets is None else self._per_group(offsets)
        self._levels: Tensor | None = None
        self._middles: Tensor | None = None
        if target.kind == "codebook":
            self._levels = self._own(named_levels(target))
            self._middles = self._own(_middles(named_levels(target)))
        self.zero = self._zero_codes()

    def _encoded(self, weight: Tensor) -> QuantizedTensor:
        return encode(weight.float().numpy(), self.format, self.convention)

    def nearest(self, w: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Codes and values [out] of the grid points nearest to w [out], weights of one group."""
        step = self.step[group]
        offset = None if self.offset is None else self.offset[group]
        ratio = w / step if offset is None else (w - offset) / step
        codes = self._codes(ratio.masked_fill_(step == 0, 0.0), group)
        values = self._units(codes, group) * step
        return codes, values if offset is None else values + offset

    def zeros(self, group: int) -> tuple[Tensor, Tensor]:
        """Codes and values [out] of exact zeros. Raises FormatError where the grid has none."""
        if self.zero is None:
            raise FormatError(f"{self.format} can't store exact zeros: pruned weights need a zero")
        return self.zero[group], self.step.new_zeros(self.step.shape[1])

    def refit(self, group: int, w: Tensor) -> None:
        """Choose the scale of one group anew, for weights w [out, group]."""
        channel = replace(self.format, granularity=PerChannel())
        fitted = encode(w.float().numpy(), channel, self.convention)
        for name in ("scales", "zeros"):
            if getattr(self._stored, name) is not None:
                getattr(self._stored, name)[:, group] = getattr(fitted, name)[:, 0]
        self.step[group] = self._own(fitted.steps())[:, 0]
        offsets = fitted.offsets()
        if self.offset is not None and offsets is not None:
            self.offset[group] = self._own(offsets)[:, 0]
        if self.format.zero == "int" and self.zero is not None and fitted.zeros is not None:
            self.zero[group] = self._own(fitted.zeros)[:, 0]

    def tensor(self, codes: Tensor) -> QuantizedTensor:
        """The encoding with these codes [out, in]."""
        packed = pack_bits(codes.numpy().astype(np.uint8), self.format.bits)
        return replace(self._stored, codes=packed)

    def _codes(self, ratio: Tensor, group: int) -> Tensor:
        if self._middles is not None:
            return (ratio[:, None] > self._middles).sum(-1).to(ratio.dtype)
        bits = self.format.bits
        zero = 0.0 if self.zero is None else self.zero[group]
        low = 1 if self.format.variant == "ternary" or self.convention == "absmax" else 0
        high = 3 if self.format.variant == "ternary" else 2**bits - 1
        return ratio.round_().add_(zero).clamp_(low if self.format.zero == "none" else 0, high)

    def _units(self, codes: Tensor, group: int) -> Tensor:
        if self._levels is not None:
            return self._levels[codes.long()]
        return codes if self.zero is None else codes - self.zero[group]

    def _zero_codes(self) -> Tensor | None:
        """[groups, out]: the code that stands for 0, or None where the grid has none."""
        if self.format.zero == "int":
            assert self._stored.zeros is not None
            return self._per_group(self._stored.zeros)
        if self.format.zero == "real":
            return None
        if self._levels is None:
            return self.step.new_full(self.step.shape, 2 ** (self.format.bits - 1))
        at = (self._levels == 0).nonzero()
        return self.step.new_full(self.step.shape, int(at[0])) if len(at) else None

    def _per_group(self, x: npt.NDArray[Any]) -> Tensor:
        """[groups, out], so that what a column needs lies side by side."""
        return self._own(x).expand(self._like.shape[0], -1).T.contiguous()

    def _own(self, x: npt.NDArray[Any]) -> Tensor:
        return self._like.new_tensor(x.astype(np.float32))


def _middles(levels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Thresholds between levels."""
    return np.array([(below + above) / 2 for below, above in pairwise(levels)], np.float32)
