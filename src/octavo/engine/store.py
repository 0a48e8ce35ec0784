"""Prefixes on disk: the keys and values of pinned prefixes outlive the engine that computed them.

One file a prefix, `IDENTITY-NAME.prefix`, written beside itself and renamed:

    magic, version, size and blake2b of the header | header (msgpack) | blocks of each KV group |
    blake2b of all that

Keys and values are right only for the model, formats and kernels that made them, so a store is
opened with an identity of all that (`identity`), and files of others are left alone. A file is read
and checked as a whole before any block is written; what is damaged is named once and never loaded.
When the directory grows beyond `max_bytes`, the files used longest ago go.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from octavo import __version__
from octavo.backends.base import Executor
from octavo.core.errors import ResourceError
from octavo.io.cache import locked
from octavo.spec.rope import cos_sin

MAX_BYTES = 4 << 30
_MAGIC = b"octavoKV"
_VERSION = 1
_FIXED = struct.Struct("<8sII16s")
_CHECK_BYTES = 32
_MOST_HEADER = 64 << 20
_log = logging.getLogger("octavo.engine.store")


class Header(msgspec.Struct, frozen=True):
    """first: per KV group the first block that is there (a window group needs no earlier ones);
    sizes: per group the bytes of its blocks; ttl: seconds from the last use."""

    identity: str
    name: str
    salt: str
    tokens: tuple[int, ...]
    ttl: float
    block_size: int
    first: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A prefix of the store and the file that holds it."""

    header: Header
    path: Path


class _Unusable(Exception):
    """A file that can't be loaded, and why."""


def identity(executor: Executor, model: Path) -> str:
    """What decides keys and values besides tokens: the model's content (its weights and configs
    are read as a whole), this version, ISA, formats, activations and kernels, rope, block layout.
    """
    receipt, layout, config = executor.receipt(), executor.layout, executor.config
    ropes = {layer.attention.rope for layer in executor.spec.layers}
    parts = (
        __version__, receipt.backend, receipt.isa, layout.layout_id, layout.format,
        layout.block_size, layout.groups, layout.block_bytes, config.wide_ratio,
        [(use.role, use.kernel, use.format, use.activations) for use in receipt.kernels],
        sorted(b"".join(a.tobytes() for a in cos_sin(r, [1], config.context)).hex() for r in ropes),
    )  # fmt: skip
    content = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    for path in _model_files(model):
        content.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                content.update(chunk)
    return content.hexdigest()


def _model_files(model: Path) -> list[Path]:
    if not model.is_dir():
        return [model]
    kinds = (".safetensors", ".json", ".gguf")
    return sorted(path for path in model.iterdir() if path.suffix in kinds)


class PrefixStore:
    """The prefixes of one identity in a directory, which other processes may share. One thread may
    save and load while another does the rest.

    Raises ResourceError when the directory can't be made. Later failures of the disk are logged,
    and cost only what could not be kept.
    """

    def __init__(self, directory: Path, identity: str, max_bytes: int = MAX_BYTES) -> None:
        self._directory, self._identity, self._max_bytes = directory, identity, max_bytes
        self._found: dict[tuple[str, str], Stored] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"can't make the prefix store {directory}: {error.strerror}; name another directory"
            ) from error
        self._scan()

    def _scan(self) -> None:
        others = 0
        for path in sorted(self._directory.glob("*.prefix")):
            if not path.name.startswith(self._identity[:16] + "-"):
                others += 1
                continue
            try:
                header = self._header(path)
                self._found[header.salt, header.name] = Stored(header, path)
            except (_Unusable, OSError) as error:
                _log.warning("the prefix file %s is not used: %s", path, error)
        if others:
            _log.info(
                "%d prefix files in %s are of other models, settings or versions and not used",
                others, self._directory,
            )  # fmt: skip

    def stored(self) -> Iterator[Stored]:
        """What can be loaded, as far as headers tell."""
        now = time.time()
        for entry in list(self._found.values()):
            if self._expired(entry, now):
                self.drop(entry.header.salt, entry.header.name)
            else:
                yield entry

    def _expired(self, entry: Stored, now: float) -> bool:
        try:
            return entry.path.stat().st_mtime + entry.header.ttl <= now
        except OSError:  # removed by another process
            return True

    def find(self, salt: str, tokens: Sequence[int]) -> Stored | None:
        """The longest prefix of `tokens` that is stored."""
        best: Stored | None = None
        for entry in self.stored():
            held = entry.header.tokens
            longer = best is None or len(held) > len(best.header.tokens)
            if longer and entry.header.salt == salt and tuple(tokens[: len(held)]) == held:
                best = entry
        return best

    def has(self, header: Header) -> bool:
        """Whether exactly this is stored; then it counts as used now."""
        entry = self._found.get((header.salt, header.name))
        if entry is None or entry.header != header:
            return False
        return self.touch(entry)

    def touch(self, entry: Stored) -> bool:
        """Used now; whether the file is still there."""
        try:
            os.utime(entry.path)
        except OSError:
            self._forget(entry)
            return False
        return True

    def _forget(self, entry: Stored) -> None:
        self._found.pop((entry.header.salt, entry.header.name), None)

    def save(self, header: Header, blocks: Sequence[bytes]) -> None:
        """Write a prefix, durable when this returns, in place of one of the same name."""
        path = self._path(header)
        size = sum(header.sizes)
        if size > self._max_bytes:
            _log.warning("the prefix %r has %d bytes, more than its store", header.name, size)
            return
        try:
            with locked(self._directory / ".lock"):
                self._clear(size)
                _write(path, header, blocks)
        except (OSError, ResourceError) as error:
            _log.warning("the prefix %r could not be stored: %s", header.name, error)
            return
        self._found[header.salt, header.name] = Stored(header, path)

    def load(self, entry: Stored) -> list[bytes] | None:
        """The blocks of each group; None, with a line in the log, when the file is no good."""
        try:
            header, blocks = self._read(entry.path)
            if header != entry.header:
                raise _Unusable("it was replaced meanwhile")
        except (_Unusable, OSError) as error:
            _log.warning("the prefix file %s is not used: %s", entry.path, error)
            self._forget(entry)
            return None
        self.touch(entry)
        return blocks

    def drop(self, salt: str, name: str) -> bool:
        """Remove a prefix; whether there was one."""
        entry = self._found.pop((salt, name), None)
        if entry is not None:
            entry.path.unlink(missing_ok=True)
        return entry is not None

    def header(
        self, name: str, salt: str, tokens: tuple[int, ...], ttl: float, block_size: int,
        blocks: Sequence[tuple[int, int]],
    ) -> Header:  # fmt: skip
        """`blocks`: per group the first block and the bytes of all."""
        first, sizes = tuple(a for a, _ in blocks), tuple(b for _, b in blocks)
        return Header(self._identity, name, salt, tokens, ttl, block_size, first, sizes)

    def _path(self, header: Header) -> Path:
        named = f"{len(header.salt)}:{header.salt}{header.name}".encode()
        digest = hashlib.blake2b(named, digest_size=12).hexdigest()
        return self._directory / f"{self._identity[:16]}-{digest}.prefix"

    def _clear(self, size: int) -> None:
        """Make room, under the lock: so whatever is half written was left by a dead process."""
        for part in self._directory.glob("*.part"):
            part.unlink(missing_ok=True)
        files = [(p.stat().st_mtime, p.stat().st_size, p) for p in self._directory.glob("*.prefix")]
        total = sum(used for _, used, _ in files)
        for _, used, path in sorted(files):
            if total + size <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= used

    def _header(self, path: Path) -> Header:
        with path.open("rb") as file:
            fixed = file.read(_FIXED.size)
            return self._decode(fixed, file.read)

    def _decode(self, fixed: bytes, more: Callable[[int], bytes]) -> Header:
        if len(fixed) < _FIXED.size:
            raise _Unusable("it is cut off")
        magic, version, size, digest = _FIXED.unpack(fixed)
        if magic != _MAGIC:
            raise _Unusable("it is no prefix file")
        if version != _VERSION:
            raise _Unusable(f"it has version {version}, and this program reads {_VERSION}")
        if size > _MOST_HEADER:
            raise _Unusable("its header is damaged")
        packed = more(size)
        if _checksum(packed)[: len(digest)] != digest:
            raise _Unusable("its header is damaged")
        try:
            header = msgspec.msgpack.decode(packed, type=Header)
        except msgspec.MsgspecError as error:
            raise _Unusable("its header is damaged") from error
        if header.identity != self._identity:
            raise _Unusable("it is of another model, other settings or another version")
        return header

    def _read(self, path: Path) -> tuple[Header, list[bytes]]:
        """All of a file, once its checksum and sizes are right."""
        data = memoryview(path.read_bytes())
        file = io.BytesIO(data[:-_CHECK_BYTES])
        header = self._decode(file.read(_FIXED.size), file.read)
        if _checksum(data[:-_CHECK_BYTES]) != data[-_CHECK_BYTES:]:
            raise _Unusable("its checksum is wrong")
        blocks = [file.read(size) for size in header.sizes]
        if file.read(1) or [len(held) for held in blocks] != list(header.sizes):
            raise _Unusable("its size is wrong")
        return header, blocks


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK_BYTES).digest()


def _write(path: Path, header: Header, blocks: Sequence[bytes]) -> None:
    packed = msgspec.msgpack.encode(header)
    fixed = _FIXED.pack(_MAGIC, _VERSION, len(packed), _checksum(packed)[:16])
    parts = (fixed, packed, *blocks)
    check = hashlib.blake2b(digest_size=_CHECK_BYTES)
    part = path.with_suffix(".part")
    # What was asked can be read out of keys and values: nobody else's business.
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        for piece in parts:
            check.update(piece)
            file.write(piece)
        file.write(check.digest())
    part.replace(path)
