"""GGUF v2 and v3: a strict reader. Nothing is allocated on a header's word alone.

Every count and length is bounded by the bytes that follow it before memory is taken; tensors must
tile the data part in blocks of whole alignment units. Layout: magic, u32 version, u64 tensors, u64
values; values; tensor infos; data.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ModelFileError, UnsupportedError
from octavo.io.gguf_values import SCALAR_DTYPES, GgufMetadata, GgufValue, Scalar, Value, ValueType
from octavo.io.mapping import FileMapping, damaged
from octavo.io.stored import BLOCK_TYPES, StoredTensor

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
_MAX_DIMS = 4
_MAX_NESTING = 4
# The shortest encodings of an array element, a value and a tensor info.
_MIN_STRING, _MIN_ARRAY, _MIN_VALUE, _MIN_TENSOR = 8, 12, 13, 32

_TYPE_NAMES = {kind.id: name for name, kind in BLOCK_TYPES.items()}
Numbers = npt.NDArray[np.generic]

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class GgufFile(NamedTuple):
    """A mapped GGUF file. `mapping` stays open until closed; tensors are views into it."""

    mapping: FileMapping
    version: int
    alignment: int
    metadata: GgufMetadata
    tensors: dict[str, StoredTensor]


def open_gguf(path: Path) -> GgufFile:
    """Map and check a file. Raises ModelFileError, or UnsupportedError for other GGUF versions."""
    mapping = FileMapping(path)
    try:
        return _Header(mapping).read()
    except (ModelFileError, UnsupportedError):
        mapping.close()
        raise


class _Info(NamedTuple):
    """A tensor info: `offset` counts from the start of the data part."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int


class _Header:
    """A cursor over the header."""

    def __init__(self, mapping: FileMapping) -> None:
        self.mapping = mapping
        self.buffer = mapping.buffer
        self.pos = 0

    def read(self) -> GgufFile:
        version = self.version()
        n_tensors = self.count("the number of tensors", _MIN_TENSOR)
        n_values = self.count("the number of metadata values", _MIN_VALUE)
        values = self.values(n_values)
        infos = [self.tensor_info() for _ in range(n_tensors)]
        alignment = self.alignment(values)
        return GgufFile(
            self.mapping,
            version,
            alignment,
            GgufMetadata(values, str(self.mapping.path)),
            self.place(infos, alignment),
        )

    def version(self) -> int:
        self.need(8, "magic and version")
        if self.buffer[:4] != MAGIC:
            raise self.bad(0, f"starts with {self.buffer[:4]!r}, expected {MAGIC!r}")
        self.pos = 4
        version = self.u32("the version")
        if version in (2, 3):
            return version
        if version & 0xFFFF == 0 and version:
            problem = "is big-endian; only little-endian files are read"
        else:
            problem = f"is GGUF version {version}; versions 2 and 3 are read"
        raise UnsupportedError(f"{self.mapping.path}: {problem}. Convert the model again.")

    def values(self, count: int) -> dict[str, GgufValue]:
        values: dict[str, GgufValue] = {}
        for _ in range(count):
            start = self.pos
            key = self.string("a metadata key")
            if key in values:
                raise self.bad(start, f"the key {key!r} occurs twice")
            kind = self.value_type(key)
            values[key] = self.array(key, 1) if kind is ValueType.ARRAY else self.scalar(kind, key)
        return values

    def value_type(self, key: str) -> ValueType:
        start = self.pos
        number = self.u32(f"the type of {key!r}")
        try:
            return ValueType(number)
        except ValueError:
            raise self.bad(start, f"{key!r} has unknown value type {number}") from None

    def scalar(self, kind: ValueType, key: str) -> GgufValue:
        if kind is ValueType.STRING:
            return GgufValue(kind, self.string(key))
        start = self.pos
        numbers = self.numbers(kind, 1, key)
        value: Scalar = numbers[0].item()
        if kind is ValueType.BOOL:
            self.check_bools(numbers, start, key)
        return GgufValue(kind, value)

    def array(self, key: str, depth: int) -> GgufValue:
        if depth > _MAX_NESTING:
            raise self.bad(self.pos, f"{key!r} nests arrays more than {_MAX_NESTING} deep")
        item = self.value_type(key)
        value: Value
        if item is ValueType.STRING:
            value = self.strings(self.count(f"the length of {key!r}", _MIN_STRING), key)
        elif item is ValueType.ARRAY:
            n = self.count(f"the length of {key!r}", _MIN_ARRAY)
            value = [self.array(key, depth + 1) for _ in range(n)]
        else:
            n = self.count(f"the length of {key!r}", SCALAR_DTYPES[item].itemsize)
            start = self.pos
            value = numbers = self.numbers(item, n, key)
            if item is ValueType.BOOL:
                self.check_bools(numbers, start, key)
        return GgufValue(ValueType.ARRAY, value, item)

    def numbers(self, kind: ValueType, count: int, key: str) -> Numbers:
        dtype = SCALAR_DTYPES[kind]
        data = self.mapping.view(self.pos, count * dtype.itemsize, key)
        self.pos += data.size
        return np.frombuffer(data.tobytes(), dtype)

    def check_bools(self, values: Numbers, start: int, key: str) -> None:
        if values.size and int(values.view(np.uint8).max()) > 1:
            raise self.bad(start, f"{key!r} holds a boolean that is neither 0 nor 1")

    def strings(self, count: int, key: str) -> list[str]:
        # Hundreds of thousands of tokens: one tight loop, names bound locally.
        buffer, pos, size, length_at = self.buffer, self.pos, self.mapping.size, _U64.unpack_from
        result = []
        try:
            for _ in range(count):
                stop = pos + 8 + length_at(buffer, pos)[0]
                if stop > size:
                    raise self.bad(pos, f"a string of {key!r} runs past the end of the file")
                result.append(str(buffer[pos + 8 : stop], "utf-8"))
                pos = stop
        except struct.error:
            raise self.bad(pos, f"the file ends inside {key!r}") from None
        except UnicodeDecodeError as error:
            raise self.bad(pos, f"a string of {key!r} isn't UTF-8 ({error.reason})") from None
        self.pos = pos
        return result

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def tensor_info(self) -> _Info:
        start = self.pos
        name = self.string("a tensor name")
        n_dims = self.u32(f"the dimensions of {name!r}")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self.bad(start, f"tensor {name!r} has {n_dims} dimensions, expected 1 to 4")
        dims = tuple(self.u64(f"a dimension of {name!r}") for _ in range(n_dims))
        type_name = self.tensor_type(name)
        nbytes = self.tensor_bytes(start, name, type_name, dims)
        offset = self.u64(f"the offset of {name!r}")
        return _Info(name, type_name, tuple(reversed(dims)), nbytes, offset)

    def tensor_type(self, name: str) -> str:
        start = self.pos
        number = self.u32(f"the type of {name!r}")
        if number not in _TYPE_NAMES:
            raise self.bad(start, f"tensor {name!r} has unknown type {number}")
        return _TYPE_NAMES[number]

    def tensor_bytes(self, start: int, name: str, type_name: str, dims: tuple[int, ...]) -> int:
        block = BLOCK_TYPES[type_name]
        elements = math.prod(dims)
        if elements == 0 or dims[0] % block.elements:
            raise self.bad(
                start,
                f"tensor {name!r} of {type_name} has rows of {dims[0]} elements, expected a "
                f"positive multiple of {block.elements}",
            )
        return elements // block.elements * block.size

    def alignment(self, values: dict[str, GgufValue]) -> int:
        entry = values.get("general.alignment")
        if entry is None:
            return DEFAULT_ALIGNMENT
        value = entry.value
        if entry.type is not ValueType.UINT32 or not isinstance(value, int):
            raise self.bad(0, f"general.alignment is {entry.type.name}, expected UINT32")
        if value & (value - 1) or not 1 <= value <= MAX_ALIGNMENT:
            raise self.bad(
                0, f"general.alignment is {value}, expected a power of two up to {MAX_ALIGNMENT}"
            )
        return value

    def place(self, infos: list[_Info], alignment: int) -> dict[str, StoredTensor]:
        """Tensors at their places in the file, which they must tile, each padded to alignment."""
        base = end = _align(self.pos, alignment)
        tensors: dict[str, StoredTensor] = {}
        for info in sorted(infos, key=lambda info: info.offset):
            where = base + info.offset
            if info.name in tensors:
                raise self.bad(where, f"tensor {info.name!r} occurs twice")
            if where != end:
                kind = "overlaps the one before it" if where < end else "leaves a hole"
                raise self.bad(where, f"tensor {info.name!r} {kind} (expected offset {end})")
            self.mapping.check(where, info.nbytes, f"tensor {info.name!r}")
            tensors[info.name] = StoredTensor(
                info.name, info.type, info.shape, self.mapping, where, info.nbytes
            )
            end = _align(where + info.nbytes, alignment)
        if self.mapping.size > end:
            raise self.bad(
                end, f"{self.mapping.size - end} bytes follow the last tensor; expected the end"
            )
        return {info.name: tensors[info.name] for info in infos}

    def count(self, what: str, least: int) -> int:
        """A u64 count of things that take at least `least` bytes each."""
        start = self.pos
        count = self.u64(what)
        left = self.mapping.size - self.pos
        if count > left // least:
            raise self.bad(start, f"{what} is {count}, more than the {left} bytes left can hold")
        return count

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def take(self, length: int, what: str) -> bytes:
        self.need(length, what)
        self.pos += length
        return self.buffer[self.pos - length : self.pos]

    def need(self, length: int, what: str) -> None:
        self.mapping.check(self.pos, length, what)

    def bad(self, offset: int, problem: str) -> ModelFileError:
        return damaged(self.mapping.path, f"offset {offset}", problem)


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
