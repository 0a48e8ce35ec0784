"""One quantized layer of another tool's checkpoint: its tensors, and what they decode to.

A `Layout` (one file per tool) says which tensors make a layer and turns them into canonical codes,
keeping every value. What our formats can't say is expanded to fp32, and the note says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError, InternalError, ModelFileError
from octavo.formats.floats import float_dtype
from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.mapping import damaged
from octavo.io.stored import StoredTensor
from octavo.io.weights import RawBlocks

Array = npt.NDArray[Any]

SCALE_TYPES: Mapping[str, str] = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}
_FLOAT8 = {"F8_E4M3": "e4m3", "F8_E5M2": "e5m2"}
_INTEGERS = {"I8": np.int8, "U8": np.uint8, "I32": np.int32, "I64": np.int64}


@dataclass(frozen=True, slots=True)
class Module:
    """A layer's tensors by the rest of their names: "qweight", "weight.absmax" and so on.

    `shape` is (out, in) of the matrix that they hold.
    """

    name: str
    shape: tuple[int, int]
    parts: Mapping[str, StoredTensor]

    def has(self, key: str) -> bool:
        return key in self.parts

    def array(self, key: str, types: tuple[str, ...], shape: tuple[int, ...]) -> Array:
        """The part, of one of these types and of this shape. Raises ModelFileError."""
        part = self.parts.get(key)
        wanted = f"{' or '.join(types)} {list(shape)}"
        if part is None:
            raise self.damaged(key, f"missing; {wanted} expected")
        if part.type not in types or part.shape != shape:
            raise self.damaged(key, f"is {part.type} {list(part.shape)}; {wanted} expected")
        return part.rows().reshape(-1).view(_dtype(part.type)).reshape(shape)

    def scale_type(self, key: str) -> str:
        """What a scale's type is called in formats. Raises ModelFileError."""
        part = self.parts.get(key)
        if part is None or part.type not in SCALE_TYPES:
            raise self.damaged(key, f"is {part.type if part else 'missing'}; a float expected")
        return SCALE_TYPES[part.type]

    def damaged(self, key: str, problem: str) -> ModelFileError:
        """The error that names this layer's file and part."""
        part = next(iter(self.parts.values()))
        return damaged(part.mapping.path, f"tensor {f'{self.name}.{key}'!r}", problem)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A layer's format, known without its codes, and how to get them.

    `note` says why a layer is expanded to fp32; "" when its own codes are kept.
    """

    format: NumberFormat
    tensor: Callable[[], QuantizedTensor]
    note: str = ""


class Layout(Protocol):
    """How a tool stores its layers."""

    tool: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]  # parts of a quantized layer
    markers: ClassVar[tuple[str, ...]]  # parts of which a quantized layer has at least one
    ignored: ClassVar[tuple[str, ...]]  # parts that say how the tool rounds activations

    def decode(self, module: Module) -> Decoded:
        """Raises ModelFileError for tensors that don't fit together, UnsupportedError for a
        variant that isn't read."""


def expanded(values: npt.NDArray[np.float32]) -> QuantizedTensor:
    """A matrix as plain fp32."""
    return QuantizedTensor(FP32, (values.shape[0], values.shape[1]), values)


class ModuleView:
    """A TensorView: `shape[0]` rows from `first` of what a layer decodes to."""

    def __init__(self, module: Module, decoded: Decoded, first: int, rows: int) -> None:
        self.module, self.decoded = module, decoded
        self.shape: tuple[int, ...] = (rows, module.shape[1])
        self._first = first

    @property
    def format(self) -> NumberFormat:
        return self.decoded.format

    @property
    def nbytes(self) -> int:
        """Bytes of these rows in the file, every part counted."""
        whole = sum(part.nbytes for part in self.module.parts.values())
        return whole * self.shape[0] // self.module.shape[0]

    @property
    def stored(self) -> StoredTensor:
        """The rows as one tensor whose type is named by their format."""
        part = next(iter(self.module.parts.values()))
        name = f"{self.module.name}.weight"
        kind = "F32" if self.format == FP32 else str(self.format)
        return StoredTensor(name, kind, self.shape, part.mapping, part.offset, self.nbytes)

    def raw(self, start: int, stop: int) -> RawBlocks:
        """Dequantized: no block type has these codes."""
        return RawBlocks("F32", self.float32(start, stop).view(np.uint8))

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        return self._whole.rows(self._first + start, self._first + stop)

    def float32(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        end = self.shape[0] if stop is None else stop
        if not 0 <= start <= end <= self.shape[0]:
            raise InternalError(f"rows {start}..{end} of {self.module.name} {list(self.shape)}")
        if start == end:
            return np.zeros((0, self.shape[1]), np.float32)
        return self.quantized(start, end).dequantize()

    def drop(self) -> None:
        for part in self.module.parts.values():
            part.drop()

    @cached_property
    def _whole(self) -> QuantizedTensor:
        try:
            return self.decoded.tensor()
        except FormatError as error:
            raise self.module.damaged("weight", str(error).rstrip(".")) from error


def _dtype(type_name: str) -> np.dtype[Any]:
    if type_name in _INTEGERS:
        return np.dtype(_INTEGERS[type_name])
    return float_dtype(_FLOAT8.get(type_name) or SCALE_TYPES[type_name])
