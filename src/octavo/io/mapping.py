"""Read-only file mappings whose pages can be given back, and writes that appear whole or never.

Every read states what it is for, so that a file that ends early is reported with the place and the
number of bytes that were expected.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from octavo.core.errors import InternalError, ModelFileError, ResourceError

U8 = npt.NDArray[np.uint8]

FETCH_AGAIN = "The file is damaged or incomplete: fetch or write it again."


def damaged(path: Path, where: str, problem: str, remedy: str = FETCH_AGAIN) -> ModelFileError:
    """The error for a file that lies about its content: the thing, the place, the remedy."""
    return ModelFileError(f"{path}: {where}: {problem}. {remedy}")


class FileMapping:
    """A file as bytes, mapped read-only. `view` is zero-copy; `drop` gives pages back.

    Raises ModelFileError when the file is missing, unreadable, not a file, or empty; ResourceError
    when there is no address space for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _map_file(path)
        self.size = len(self._map)
        self._bytes: U8 = np.frombuffer(self._map, np.uint8)

    @property
    def buffer(self) -> mmap.mmap:
        """The mapping itself, for `struct.unpack_from` and slicing to bytes."""
        return self._map

    def view(self, offset: int, length: int, what: str) -> U8:
        """uint8 [length] of the file's own memory, read-only."""
        if self._bytes.size == 0:
            raise InternalError(f"{self.path}: read after it was closed")
        self.check(offset, length, what)
        return self._bytes[offset : offset + length]

    def check(self, offset: int, length: int, what: str) -> None:
        """Raise ModelFileError unless the file holds [offset, offset + length)."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise damaged(
                self.path,
                f"offset {offset}",
                f"{what} needs {length} bytes but the file has {self.size} bytes in all",
            )

    def drop(self, offset: int, length: int) -> None:
        """Give back the pages of a range; reading it later faults them in again."""
        start = offset - offset % mmap.PAGESIZE
        stop = min(offset + length, self.size)
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """Unmap, now or when the last view of it is gone."""
        self._bytes = np.zeros(0, np.uint8)
        try:
            self._map.close()
        except BufferError:
            # Someone still holds a view; the mapping goes with the last of them.
            return


def _map_file(path: Path) -> mmap.mmap:
    try:
        _check_kind(path)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ModelFileError(f"{path}: the file is empty. {FETCH_AGAIN}")
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelFileError(
            f"{path}: no such file. Check the path, or fetch the model again."
        ) from None
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise ResourceError(
                f"{path}: no address space to map its {path.stat().st_size} bytes. "
                "Raise the limit (`ulimit -v`), or take a smaller model."
            ) from error
        raise ModelFileError(
            f"{path}: can't be read ({error.strerror}). Check the path and its permissions."
        ) from error


def _check_kind(path: Path) -> None:
    """Only a plain file: opening a pipe would wait for its writer for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ModelFileError(f"{path}: {kind} where a file was expected. Give the file.")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes `path`'s place only when the block ends well; otherwise nothing is left.

    Raises ResourceError when the place can't be written, or the disk is full.
    """
    # No name of tempfile's: its files are private, and this one is to have what the umask says.
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise ResourceError(
            f"{path}: can't be written ({error.strerror or error}). "
            "Check the directory's permissions and its free space."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
