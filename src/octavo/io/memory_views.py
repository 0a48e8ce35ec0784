"""Tensors in memory as a `WeightSource` hands them out: no file behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.weights import RawBlocks

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CodedView:
    """A matrix in its codes."""

    tensor: QuantizedTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def format(self) -> NumberFormat:
        return self.tensor.format

    def raw(self, start: int, stop: int) -> RawBlocks:
        """Dequantized: no block type has these codes."""
        return RawBlocks("F32", self.float32(start, stop).view(np.uint8))

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        return self.tensor.rows(start, stop)

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        return self.tensor.rows(start, self.shape[0] if stop is None else stop).dequantize()

    def drop(self) -> None:
        """Nothing is mapped."""


@dataclass(frozen=True, slots=True)
class FloatView:
    """A matrix or a vector in fp32."""

    values: F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def format(self) -> NumberFormat:
        return FP32

    def raw(self, start: int, stop: int) -> RawBlocks:
        return RawBlocks("F32", self._rows(start, stop).view(np.uint8))

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        rows = self._rows(start, stop)
        return QuantizedTensor(FP32, (rows.shape[0], rows.shape[1]), rows)

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        return self.values[start:stop] if self.values.ndim > 1 else self.values

    def drop(self) -> None:
        """Nothing is mapped."""

    def _rows(self, start: int, stop: int) -> F32:
        table = self.values if self.values.ndim > 1 else self.values.reshape(-1, 1)
        return np.ascontiguousarray(table[start:stop])
