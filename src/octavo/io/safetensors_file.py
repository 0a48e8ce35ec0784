"""safetensors: a strict reader of files and sharded directories, and a writer.

Header, offsets, overlaps and holes are checked against the file's size before a tensor is touched.
Layout: u64 header length, JSON header, data; a tensor's `data_offsets` count from the data's start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError, ModelFileError
from octavo.io.mapping import FileMapping, damaged, replacing
from octavo.io.stored import StoredTensor

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
    "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

_NUMPY_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip

MAX_HEADER = 100_000_000
_MAX_DIMS = 8
_MAX_DIM = 1 << 48
_ALIGN = 64
INDEX_NAME = "model.safetensors.index.json"


class SafetensorsFile(NamedTuple):
    """One mapped file. `metadata` is the header's `__metadata__`."""

    mapping: FileMapping
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def open_safetensors(path: Path) -> SafetensorsFile:
    """Map and check one file. Raises ModelFileError."""
    mapping = FileMapping(path)
    try:
        header, start = _read_header(mapping)
        metadata = _metadata(path, header.pop("__metadata__", {}))
        tensors = {name: _tensor(mapping, start, name, entry) for name, entry in header.items()}
        _check_coverage(mapping, start, tensors.values())
    except ModelFileError:
        mapping.close()
        raise
    return SafetensorsFile(mapping, tensors, metadata)


def open_directory(directory: Path) -> list[SafetensorsFile]:
    """Every safetensors file of a Hugging Face directory, single or sharded by its index.

    Tensors of a shard that the index doesn't list are left out: the index is what counts.
    """
    index = directory / INDEX_NAME
    if index.exists():
        return _open_shards(directory, _read_index(index))
    single = directory / "model.safetensors"
    if single.exists():
        return [open_safetensors(single)]
    raise ModelFileError(_nothing_there(directory))


def _nothing_there(directory: Path) -> str:
    others = sorted(p.name for p in directory.glob("*.safetensors"))
    if others:
        return (
            f"{directory}: holds {', '.join(others[:3])} but neither model.safetensors nor "
            f"{INDEX_NAME}. Rename the file, or add the index."
        )
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        return (
            f"{directory}: holds pickled weights only, which can run code when loaded and are "
            "refused. Convert them to safetensors."
        )
    return f"{directory}: no model.safetensors and no {INDEX_NAME}. Fetch the weights again."


def _read_header(mapping: FileMapping) -> tuple[dict[str, object], int]:
    mapping.check(0, 8, "the header length")
    length = int.from_bytes(mapping.buffer[:8], "little")
    if length > min(MAX_HEADER, mapping.size - 8):
        raise damaged(
            mapping.path,
            "offset 0",
            f"the header claims {length} bytes; {mapping.size - 8} follow and at most "
            f"{MAX_HEADER} are accepted",
        )
    return _parse_header(mapping.path, mapping.buffer[8 : 8 + length]), 8 + length


def _parse_header(path: Path, text: bytes) -> dict[str, object]:
    if not text.startswith(b"{"):
        raise damaged(path, "offset 8", "the header isn't a JSON object")
    header = parse_json(path, text)
    if not isinstance(header, dict):
        raise damaged(path, "offset 8", "the header isn't a JSON object")
    return header


def parse_json(path: Path, text: bytes) -> object:
    """JSON without duplicate keys. Raises ModelFileError."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise damaged(path, "JSON", f"the key {twice!r} occurs twice")
        return result

    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise damaged(path, "JSON", "nested too deeply") from None
    except ValueError as error:
        raise damaged(path, "JSON", f"not valid ({error})") from None


def _metadata(path: Path, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise damaged(path, "__metadata__", "must map strings to strings")
    return value


def _tensor(mapping: FileMapping, start: int, name: str, entry: object) -> StoredTensor:
    where = f"tensor {name!r}"
    path = mapping.path
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, where, "needs exactly dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        raise damaged(path, where, f"has unknown dtype {dtype!r}", f"Known: {known}.")
    shape = _integers(path, where, "shape", entry["shape"], _MAX_DIMS)
    offsets = _integers(path, where, "data_offsets", entry["data_offsets"], 2)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(path, where, f"data_offsets {list(offsets)} are no range")
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise damaged(
            path,
            where,
            f"{dtype} {list(shape)} takes {nbytes} bytes but data_offsets span "
            f"{offsets[1] - offsets[0]}",
        )
    mapping.check(start + offsets[0], nbytes, where)
    return StoredTensor(name, dtype, shape, mapping, start + offsets[0], nbytes)


def _integers(path: Path, where: str, key: str, value: object, most: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > most:
        raise damaged(path, where, f"{key} must be a list of at most {most} integers")
    if not all(type(item) is int and 0 <= item <= _MAX_DIM for item in value):
        raise damaged(path, where, f"{key} holds something that is no size")
    return tuple(value)


def _check_coverage(mapping: FileMapping, start: int, tensors: Iterable[StoredTensor]) -> None:
    """Tensors must tile the data exactly: no overlap, no hole, nothing after the last."""
    end = start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            kind = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole"
            raise damaged(
                mapping.path, f"tensor {tensor.name!r}, offset {tensor.offset}",
                f"{kind} (expected offset {end})",
            )  # fmt: skip
        end += tensor.nbytes
    if end != mapping.size:
        raise damaged(
            mapping.path, f"offset {end}",
            f"{mapping.size - end} bytes follow the last tensor; expected {end} bytes in all",
        )  # fmt: skip


def _read_index(path: Path) -> dict[str, str]:
    text = FileMapping(path)
    index = parse_json(path, text.buffer[:])
    text.close()
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(path, "weight_map", "missing, empty, or not an object")
    for name, file in weight_map.items():
        # A shard's name comes from an untrusted file: it must not lead out of the directory.
        if not isinstance(file, str) or file in ("", "..") or Path(file).name != file:
            raise damaged(path, f"weight_map[{name!r}]", f"{file!r} is not a plain file name")
    return weight_map


def _open_shards(directory: Path, weight_map: dict[str, str]) -> list[SafetensorsFile]:
    shards: list[SafetensorsFile] = []
    try:
        for name in sorted(set(weight_map.values())):
            shards.append(_open_shard(directory, name, weight_map))
    except ModelFileError:
        for shard in shards:
            shard.mapping.close()
        raise
    return shards


def _open_shard(directory: Path, file: str, weight_map: dict[str, str]) -> SafetensorsFile:
    path = directory / file
    if not path.exists():
        raise damaged(directory, file, f"shard named by {INDEX_NAME} is missing")
    shard = open_safetensors(path)
    listed = {name for name, where in weight_map.items() if where == file}
    elsewhere = sorted(n for n in shard.tensors if weight_map.get(n, file) != file)
    absent = sorted(listed - set(shard.tensors))
    if elsewhere or absent:
        shard.mapping.close()
        name = (elsewhere or absent)[0]
        problem = f"also in {weight_map[name]}" if elsewhere else f"listed by {INDEX_NAME}, absent"
        raise damaged(path, f"tensor {name!r}", problem)
    return shard._replace(tensors={n: t for n, t in shard.tensors.items() if n in listed})


def write_safetensors(
    path: Path,
    tensors: Mapping[str, npt.NDArray[np.generic]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays (ml_dtypes for bf16 and fp8); the data starts at a multiple of 64 bytes.

    Wide types come first, so that every tensor is aligned to its own elements.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        array = tensors[name]
        offsets = [end, end + array.nbytes]
        header[name] = {
            "dtype": _dtype_name(name, array), "shape": list(array.shape), "data_offsets": offsets,
        }  # fmt: skip
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)


def _dtype_name(name: str, array: npt.NDArray[np.generic]) -> str:
    if array.dtype.name not in _NUMPY_NAMES:
        raise FormatError(f"{name}: safetensors can't hold {array.dtype}. Convert it first.")
    return _NUMPY_NAMES[array.dtype.name]
