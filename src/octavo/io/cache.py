"""Where fetched and derived files live, and how they get there: beside, then renamed, under a lock.

The directory is $OCTAVO_CACHE, else $XDG_CACHE_HOME/octavo, else ~/.cache/octavo. Everything in it
can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from octavo.core.errors import ResourceError


def cache_root() -> Path:
    """The cache directory (not created here)."""
    if own := os.environ.get("OCTAVO_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "octavo"
    return Path("~/.cache/octavo").expanduser()


def cache_directory(name: str) -> Path:
    """A sub-directory of the cache, created. Raises ResourceError when that can't be done."""
    path = cache_root() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"can't create the cache directory {path}: {error.strerror}; "
            "set OCTAVO_CACHE to a directory that can be written"
        ) from error
    return path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; it takes the name `path` only when the block ends without an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the lock dies with the process that holds it."""
    import fcntl

    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
