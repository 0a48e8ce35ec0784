"""A `WeightSource` over tensors in memory, laid out and named as a file of the family has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ModelFileError
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.weights import RawBlocks
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.family import TensorRef

F32 = npt.NDArray[np.float32]
Naming = Callable[[DecoderSpec, Role], TensorRef]


@dataclass(frozen=True)
class MemoryTensor:
    """fp32 values, whatever format they are said to be stored in."""

    values: F32
    format: NumberFormat

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def raw(self, start: int, stop: int) -> RawBlocks:
        rows = np.ascontiguousarray(self.values[start:stop])
        return RawBlocks("F32", rows.view(np.uint8))

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        rows = self.values[start:stop]
        return QuantizedTensor(NumberFormat.parse("fp32"), rows.shape, rows)

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        return self.values[start:stop]

    def drop(self) -> None:
        """Nothing is mapped."""


class MemorySource:
    """Applies a TensorRef as a reader must: rows, expert index, unpermute, add."""

    def __init__(
        self,
        spec: DecoderSpec,
        tensors: Mapping[str, F32],
        naming: Naming,
        format: str = "fp32",
    ) -> None:
        self._spec, self._tensors, self._naming = spec, tensors, naming
        self._format = NumberFormat.parse(format)

    def has(self, role: Role) -> bool:
        return self._naming(self._spec, role).name in self._tensors

    def tensor(self, role: Role) -> MemoryTensor:
        ref = self._naming(self._spec, role)
        if ref.name not in self._tensors:
            raise ModelFileError(f"{self.describe()}: tensor {ref.name} ({role}) is missing")
        return MemoryTensor(_resolve(self._tensors[ref.name], ref), self._format)

    def describe(self) -> str:
        return "tensors in memory"


def _resolve(values: F32, ref: TensorRef) -> F32:
    if ref.index is not None:
        values = values[ref.index]
    if ref.rows is not None:
        values = values[slice(*ref.rows)]
    if ref.unpermute:
        pairs = values.reshape(ref.unpermute, -1, 2, *values.shape[1:])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    return values + np.float32(ref.add) if ref.add else values


def checkpoint_tensors(model: Any, directory: Any) -> dict[str, F32]:
    """A transformers model's tensors under the names that its checkpoint has."""
    from safetensors.numpy import load_file

    model.save_pretrained(directory, safe_serialization=True)
    return dict(load_file(directory / "model.safetensors"))
