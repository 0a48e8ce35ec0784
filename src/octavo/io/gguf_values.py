"""GGUF metadata: typed values, and a mapping that reads them with their types checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ConfigError


class ValueType(IntEnum):
    """Types of metadata values, by their number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# Little-endian element types of scalars and of numeric arrays.
SCALAR_DTYPES: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}

Scalar = int | float | bool | str
Value = Scalar | list[str] | npt.NDArray[np.generic] | list["GgufValue"]


class GgufValue(NamedTuple):
    """A value with the type it has in the file; `item` is the element type of an array.

    Arrays of strings are lists, arrays of numbers are numpy arrays, arrays of arrays are lists of
    GgufValue.
    """

    type: ValueType
    value: Value
    item: ValueType | None = None


def gguf_value(value: Scalar | list[str] | list[int] | list[float] | GgufValue) -> GgufValue:
    """The usual type for a Python value: uint32 (or wider), float32, bool, string, and arrays."""
    if isinstance(value, GgufValue):
        return value
    if isinstance(value, list):
        return _array(value)
    if isinstance(value, bool):
        return GgufValue(ValueType.BOOL, value)
    if isinstance(value, str):
        return GgufValue(ValueType.STRING, value)
    if isinstance(value, float):
        return GgufValue(ValueType.FLOAT32, value)
    if value < 0:
        kind = ValueType.INT32 if value >= -(1 << 31) else ValueType.INT64
    else:
        kind = ValueType.UINT32 if value < 1 << 32 else ValueType.UINT64
    return GgufValue(kind, value)


def _array(value: list[str] | list[int] | list[float]) -> GgufValue:
    strings = [item for item in value if isinstance(item, str)]
    if strings:
        return GgufValue(ValueType.ARRAY, strings, ValueType.STRING)
    if any(isinstance(item, float) for item in value):
        return GgufValue(ValueType.ARRAY, np.array(value, "<f4"), ValueType.FLOAT32)
    if value and all(isinstance(item, bool) for item in value):
        return GgufValue(ValueType.ARRAY, np.array(value, "?"), ValueType.BOOL)
    return GgufValue(ValueType.ARRAY, np.array(value, "<i4"), ValueType.INT32)


class GgufMetadata(Mapping[str, Value]):
    """The key-value part of a header. `metadata[key]` is the plain value; the methods check types.

    Typed reads give None (or an empty list) for an absent key and raise ConfigError, naming the
    file and the key, for a value of another type.
    """

    def __init__(self, values: dict[str, GgufValue], origin: str) -> None:
        self._values = values
        self.origin = origin

    def __getitem__(self, key: str) -> Value:
        return self._values[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def typed(self) -> Mapping[str, GgufValue]:
        """All values with their types in the file, for writing them again."""
        return self._values

    def integer(self, key: str) -> int | None:
        value = self.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong(key, "an integer")

    def number(self, key: str) -> float | None:
        value = self.get(key)
        if value is None or isinstance(value, float):
            return value
        return self.integer(key)

    def string(self, key: str) -> str | None:
        value = self.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, "a string")

    def boolean(self, key: str) -> bool | None:
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(key, "a boolean")

    def strings(self, key: str) -> list[str]:
        entry = self._values.get(key)
        if entry is None:
            return []
        if entry.item is ValueType.STRING and isinstance(entry.value, list):
            return [item for item in entry.value if isinstance(item, str)]
        raise self._wrong(key, "an array of strings")

    def array(self, key: str) -> npt.NDArray[np.generic] | None:
        """A numeric array, or None."""
        value = self.get(key)
        if value is None or isinstance(value, np.ndarray):
            return value
        raise self._wrong(key, "an array of numbers")

    def _wrong(self, key: str, expected: str) -> ConfigError:
        entry = self._values[key]
        kind = entry.type.name if entry.item is None else f"ARRAY of {entry.item.name}"
        return ConfigError(
            f"{self.origin}: {key} is {kind}, expected {expected}. Convert the model again."
        )
