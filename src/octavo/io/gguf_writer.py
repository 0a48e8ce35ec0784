"""GGUF v3 writer. The file appears under its name only when it is complete."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from octavo.core.errors import FormatError, InternalError
from octavo.io.gguf_reader import DEFAULT_ALIGNMENT, MAGIC
from octavo.io.gguf_values import SCALAR_DTYPES, GgufValue, Value, ValueType
from octavo.io.mapping import U8, replacing
from octavo.io.stored import BLOCK_TYPES

VERSION = 3


class GgufTensor(NamedTuple):
    """A tensor to write. shape is row-major; chunks are its bytes in order, as stored blocks.

    An iterable that makes its chunks on demand keeps a large file out of memory.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    chunks: Iterable[U8]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor. Raises FormatError when the blocks can't take the shape."""
        block = BLOCK_TYPES[self.type]
        if not self.shape or min(self.shape) < 1 or self.shape[-1] % block.elements:
            raise FormatError(
                f"{self.name}: {self.type} needs rows of a multiple of {block.elements} elements, "
                f"not shape {list(self.shape)}. Keep this tensor in F16."
            )
        return int(np.prod(self.shape, dtype=object)) // block.elements * block.size


def write_gguf(
    path: Path, metadata: Mapping[str, GgufValue], tensors: Sequence[GgufTensor]
) -> None:
    """Write a file; `general.alignment` of the metadata is obeyed (32 when absent)."""
    entry = metadata.get("general.alignment")
    alignment = entry.value if entry and isinstance(entry.value, int) else DEFAULT_ALIGNMENT
    header = _header(metadata, tensors, alignment)
    with replacing(path) as file:
        file.write(header + _padding(len(header), alignment))
        for tensor in tensors:
            _write_data(file, tensor)
            file.write(_padding(tensor.nbytes, alignment))


def _header(
    metadata: Mapping[str, GgufValue], tensors: Sequence[GgufTensor], alignment: int
) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), struct.pack("<I", value.type), _value(value)]
    offset = 0
    for tensor in tensors:
        parts.append(_info(tensor, offset))
        offset += tensor.nbytes + len(_padding(tensor.nbytes, alignment))
    return b"".join(parts)


def _info(tensor: GgufTensor, offset: int) -> bytes:
    dims = tensor.shape[::-1]
    layout = f"<I{len(dims)}QIQ"
    kind = BLOCK_TYPES[tensor.type].id
    return _string(tensor.name) + struct.pack(layout, len(dims), *dims, kind, offset)


def _value(value: GgufValue) -> bytes:
    if value.type is ValueType.STRING:
        return _string(str(value.value))
    if value.type is not ValueType.ARRAY:
        return np.array(value.value, SCALAR_DTYPES[value.type]).tobytes()
    if value.item is None or isinstance(value.value, int | float | str):
        raise InternalError(f"an array needs items and their type, not {value!r}")
    return struct.pack("<IQ", value.item, len(value.value)) + _items(value.item, value.value)


def _items(item: ValueType, values: Value) -> bytes:
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values, SCALAR_DTYPES[item]).tobytes()
    assert isinstance(values, list)
    return b"".join(_value(v) if isinstance(v, GgufValue) else _string(v) for v in values)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _write_data(file: IO[bytes], tensor: GgufTensor) -> None:
    written = 0
    for chunk in tensor.chunks:
        written += file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
    if written != tensor.nbytes:
        raise InternalError(f"{tensor.name}: wrote {written} bytes of {tensor.nbytes}")


def _padding(length: int, alignment: int) -> bytes:
    return bytes(-length % alignment)
