"""Reads what `octavo compress` wrote: a model directory with a manifest, `octavo.json`.

Every tensor stands under the name that Llama's checkpoints give its role, never fused: NAME itself
for plain floats, NAME.codes, NAME.scales and so on (`QuantizedTensor.state`) for the others. The
manifest says the format of each, its layout where that isn't dense (formats/layouts.py: then
NAME.index or NAME.mask stand beside NAME.codes, of plain floats too), and the size and SHA-256 of
each file, which are checked here.
Norms are stored as the factors themselves.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError, InternalError, ModelFileError, UnsupportedError
from octavo.formats.floats import float_dtype
from octavo.formats.layouts import DENSE, PARTS, Stored, block_of
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.mapping import FileMapping, damaged
from octavo.io.safetensors_file import open_directory, parse_json
from octavo.io.served import Served
from octavo.io.stored import StoredTensor
from octavo.io.weights import RawBlocks
from octavo.spec import naming
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import role_shape, roles

QUANT_METHOD = "octavo"
COMPRESSED_TENSORS = "compressed-tensors"  # the other way in which artifacts are stored
MANIFEST = "octavo.json"
MANIFEST_FORMAT = 1

_DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "e4m3", "F8_E5M2": "e5m2"}
_PLAIN_TYPES = {variant: name for name, variant in _DTYPES.items()}
_HASHED = 1 << 22  # bytes at a time


@dataclass(frozen=True, slots=True)
class Entry:
    """What the manifest says of one tensor."""

    format: NumberFormat
    shape: tuple[int, ...]
    layout: str = DENSE


@dataclass(frozen=True, slots=True)
class Manifest:
    """`tensors` by name; `files` maps a file name to (bytes, SHA-256); `content` is all of it."""

    tensors: Mapping[str, Entry]
    files: Mapping[str, tuple[int, str]]
    content: Mapping[str, object]


def is_artifact(config: Mapping[str, object]) -> bool:
    """Whether a config.json is one of ours."""
    method = config.get("quantization_config")
    return isinstance(method, Mapping) and method.get("quant_method") == QUANT_METHOD


def has_manifest(directory: Path) -> bool:
    """Whether a directory is an artifact of ours, however its tensors are stored."""
    return (directory / MANIFEST).is_file()


def artifact_name(spec: DecoderSpec, role: Role) -> str:
    """The name under which an artifact stores a role's tensor."""
    return naming.hf_tensor(spec, role).name


def stored_array(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The array as safetensors can hold it: e8m0 scales have no type there and go as bytes."""
    return array.view(np.uint8) if array.dtype.name == "float8_e8m0fnu" else array


def array_dtype(type_name: str) -> np.dtype[Any]:
    """The numpy type of a safetensors type that artifacts use."""
    if type_name in ("U8", "I8"):
        return np.dtype(np.uint8 if type_name == "U8" else np.int8)
    return float_dtype(_DTYPES[type_name])


def sha256_of(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file. Raises ModelFileError when it can't be read."""
    digest = hashlib.sha256()
    mapping = FileMapping(path)
    try:
        for start in range(0, mapping.size, _HASHED):
            length = min(_HASHED, mapping.size - start)
            digest.update(mapping.view(start, length, "its checksum").data)
        return mapping.size, digest.hexdigest()
    finally:
        mapping.close()


class ArtifactView:
    """A TensorView over the parts of one tensor."""

    def __init__(self, name: str, entry: Entry, parts: Mapping[str, StoredTensor]) -> None:
        self.name = name
        self.format, self.shape, self.layout = entry.format, entry.shape, entry.layout
        self._parts = parts

    @property
    def nbytes(self) -> int:
        """Bytes of all parts in the file."""
        return sum(part.nbytes for part in self._parts.values())

    @property
    def stored(self) -> StoredTensor:
        """The tensor as one: the name of its type is that of its format unless it is plain."""
        first = next(iter(self._parts.values()))
        kind = first.type if self.format.plain else str(self.format)
        return StoredTensor(self.name, kind, self.shape, first.mapping, first.offset, self.nbytes)

    @cached_property
    def tensor(self) -> QuantizedTensor:
        """The whole matrix; its arrays are the file's own memory. Raises ModelFileError."""
        if self._packed:
            return self.quantized(0, self.shape[0])
        shape = (self.shape[0], self.shape[1])
        state = {f".{key}": self._array(key) for key in self._parts}
        with self._naming():
            return QuantizedTensor.from_state(state, "", self.format, shape)

    @cached_property
    def _packed(self) -> Stored | None:
        """A layout that isn't dense; its rows are expanded as they are asked for."""
        if self.layout == DENSE:
            return None
        shape = (self.shape[0], self.shape[1])
        with self._naming():
            return Stored(
                self.layout, self.format, shape, {key: self._array(key) for key in self._parts}
            )

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            where = next(iter(self._parts.values())).mapping.path
            raise damaged(where, f"tensor {self.name!r}", str(error).rstrip(".")) from error

    def raw(self, start: int, stop: int) -> RawBlocks:
        """Wide floats as stored; all else dequantized, for no block type has these codes."""
        if self._packed and self.format.plain and self.format.bits > 8:
            codes = np.ascontiguousarray(self.quantized(start, stop).codes)
            return RawBlocks(_PLAIN_TYPES[self.format.variant], codes.view(np.uint8))
        if self.format.plain and self.format.bits > 8:
            rows = self._parts["codes"].rows()
            return RawBlocks(_PLAIN_TYPES[self.format.variant], rows[start:stop])
        return RawBlocks("F32", self.float32(start, stop).view(np.uint8))

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        if self._packed is None:
            return self.tensor.rows(start, stop)
        with self._naming():
            return self._packed.rows(start, stop)

    def float32(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        end = self.shape[0] if stop is None else stop
        if not 0 <= start <= end <= self.shape[0]:
            raise InternalError(f"rows {start}..{end} of {self.name} {list(self.shape)}")
        if self.format.plain and self._packed is None:
            return self._array("codes")[start:end].astype(np.float32)
        if start == end:
            return np.zeros((0, *self.shape[1:]), np.float32)
        return self.quantized(start, end).dequantize()

    @property
    def mask(self) -> npt.NDArray[np.uint8] | None:
        """Of layouts of blocks: which are there, as formats/layouts.py has it. Raises
        ModelFileError."""
        return self._array("mask") if self._packed and block_of(self.layout) else None

    def drop(self) -> None:
        for part in self._parts.values():
            part.drop()

    def _array(self, key: str) -> npt.NDArray[Any]:
        part = self._parts[key]
        dtype = _dtype(part, self.format.scale if key == "scales" else "")
        return part.rows().reshape(-1).view(dtype).reshape(part.shape)


class ArtifactSource:
    """All tensors of an artifact by role: a WeightSource."""

    def __init__(
        self,
        spec: DecoderSpec,
        views: Mapping[str, ArtifactView],
        origin: str,
        served: Served | None = None,
    ) -> None:
        self.served = served or Served()
        self._spec = spec
        self._views = views
        self._origin = origin

    def tensor(self, role: Role) -> ArtifactView:
        name = artifact_name(self._spec, role)
        if name not in self._views:
            raise ModelFileError(
                f"{self._origin}: no tensor {name!r} ({role}). Compress the model again."
            )
        return self._views[name]

    def has(self, role: Role) -> bool:
        return artifact_name(self._spec, role) in self._views

    def describe(self) -> str:
        sizes: Counter[str] = Counter()
        for view in self._views.values():
            sizes[str(view.format)] += view.nbytes
        total = max(1, sizes.total())
        shares = [f"{name} {size / total:.0%}" for name, size in sizes.most_common(3)]
        return f"{self._origin} (octavo: {', '.join(shares)} of {total / 1e6:.1f} MB)"

    def check(self) -> None:
        """Every role is there in the spec's shape, and nothing else is."""
        names = {artifact_name(self._spec, role): role for role in roles(self._spec)}
        for role in names.values():
            view, shape = self.tensor(role), role_shape(self._spec, role)
            if view.shape != shape:
                raise ModelFileError(
                    f"{self._origin}: tensor {view.name!r} is {list(view.shape)}; the config calls "
                    f"for {list(shape)}. Compress the model again."
                )
        for name in self._views.keys() - names.keys():
            raise ModelFileError(f"{self._origin}: tensor {name!r} is no part of this model.")


def read_manifest(directory: Path) -> Manifest:
    """The manifest, its files not yet checked. Raises ModelFileError or UnsupportedError."""
    path = directory / MANIFEST
    mapping = FileMapping(path)
    try:
        content = parse_json(path, mapping.buffer[:])
    finally:
        mapping.close()
    if not isinstance(content, dict) or content.get("format") != MANIFEST_FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise UnsupportedError(
            f"{path}: artifact format {found!r}; this Octavo reads {MANIFEST_FORMAT}. "
            "Use the Octavo that wrote it, or compress the model again."
        )
    tensors, files = _mapping(path, content, "tensors"), _mapping(path, content, "files")
    return Manifest(
        {name: _entry(path, name, value) for name, value in tensors.items()},
        {name: _file(path, name, value) for name, value in files.items()},
        content,
    )


def verify(directory: Path, manifest: Manifest) -> None:
    """Compare every file with its size and checksum. Raises ModelFileError naming the file."""
    for name, expected in manifest.files.items():
        path = directory / name
        if sha256_of(path) != expected:
            raise ModelFileError(
                f"{path}: differs from what {MANIFEST} says was written (size or SHA-256). "
                "Copy the artifact again, or compress the model again."
            )


def open_artifact(directory: Path, spec: DecoderSpec) -> ArtifactSource:
    """Map the tensors after checking every file. Raises ModelFileError or UnsupportedError."""
    manifest = _verified(directory)
    stored = {name: t for file in open_directory(directory) for name, t in file.tensors.items()}
    views = {
        name: ArtifactView(name, entry, _parts(directory, name, entry, stored))
        for name, entry in manifest.tensors.items()
    }
    known = {part.name for view in views.values() for part in view._parts.values()}
    for name in stored.keys() - known:
        raise damaged(directory, f"tensor {name!r}", f"{MANIFEST} does not know it")
    return ArtifactSource(spec, views, str(directory), _served(directory, manifest))


def check_shared(directory: Path, spec: DecoderSpec, formats: Mapping[Role, str]) -> Served:
    """Check an artifact that is stored as compressed-tensors: its files, and that its tensors have
    the formats that the manifest says. Returns what it was compressed for. Raises ModelFileError
    or UnsupportedError."""
    manifest = _verified(directory)
    for role, found in formats.items():
        name = artifact_name(spec, role)
        entry = manifest.tensors.get(name)
        if entry is None or str(entry.format) != found:
            said = "nothing" if entry is None else str(entry.format)
            raise damaged(directory, f"tensor {name!r}", f"is {found}, {MANIFEST} says {said}")
    return _served(directory, manifest)


def _verified(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    verify(directory, manifest)
    return manifest


def _served(directory: Path, manifest: Manifest) -> Served:
    try:
        return Served.from_dict(manifest.content.get("runtime", {}))
    except ValueError as error:
        raise damaged(directory / MANIFEST, "runtime", str(error)) from error


def _parts(
    directory: Path, name: str, entry: Entry, stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    if entry.format.plain and entry.layout == DENSE:
        found = {"codes": stored[name]} if name in stored else {}
    else:
        keys = ("codes", "scales", "zeros", "super_scales", "super_zeros", "codebook")
        more = PARTS if entry.layout != DENSE else ()
        named = {key: f"{name}.{key}" for key in (*keys, *more, "tensor_scale")}
        found = {key: stored[full] for key, full in named.items() if full in stored}
    if "codes" not in found:
        raise damaged(directory, f"tensor {name!r}", f"{MANIFEST} names it, no file holds it")
    _check_plain(directory, name, entry, found["codes"])
    return found


def _check_plain(directory: Path, name: str, entry: Entry, stored: StoredTensor) -> None:
    if not entry.format.plain:
        return
    expected = _PLAIN_TYPES.get(entry.format.variant)
    same_shape = stored.shape == entry.shape or entry.layout != DENSE
    if stored.type != expected or not same_shape:
        raise damaged(
            directory,
            f"tensor {name!r}",
            f"is {stored.type} {list(stored.shape)}, {MANIFEST} says {entry.format} "
            f"{list(entry.shape)}",
        )


def _dtype(part: StoredTensor, scale: str) -> np.dtype[Any]:
    if scale == "e8m0" and part.type == "U8":
        return float_dtype("e8m0")
    if part.type not in ("U8", "I8", *_DTYPES):
        raise damaged(part.mapping.path, f"tensor {part.name!r}", f"{part.type} holds no codes")
    return array_dtype(part.type)


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict) or not value:
        raise damaged(path, key, "missing, empty, or not an object")
    return value


def _entry(path: Path, name: str, value: object) -> Entry:
    if not isinstance(value, dict) or not isinstance(value.get("format"), str):
        raise damaged(path, f"tensors[{name!r}]", "needs a format and a shape")
    shape = value.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise damaged(path, f"tensors[{name!r}]", f"{shape!r} is no shape")
    try:
        format = NumberFormat.parse(value["format"])
    except FormatError as error:
        raise damaged(path, f"tensors[{name!r}]", str(error)) from error
    if len(shape) != 2 and not (len(shape) == 1 and format.plain):
        raise damaged(path, f"tensors[{name!r}]", f"{format} of shape {shape}")
    layout = value.get("layout", DENSE)
    if not isinstance(layout, str) or (layout != DENSE and len(shape) != 2):
        raise damaged(path, f"tensors[{name!r}]", f"{layout!r} is no layout of shape {shape}")
    return Entry(format, tuple(shape), layout)


def _file(path: Path, name: str, value: object) -> tuple[int, str]:
    # A name from an untrusted file: it must not lead out of the directory.
    if name in ("", ".", "..") or Path(name).name != name:
        raise damaged(path, f"files[{name!r}]", "is not a plain file name")
    size, digest = (value.get("bytes"), value.get("sha256")) if isinstance(value, dict) else (0, 0)
    if type(size) is not int or not isinstance(digest, str):
        raise damaged(path, f"files[{name!r}]", "needs bytes and sha256")
    return size, digest
