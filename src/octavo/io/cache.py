"""Where fetched and derived files live, and the lock under which they get there.

The directory is $OCTAVO_CACHE, else $XDG_CACHE_HOME/octavo, else ~/.cache/octavo. Everything in it
can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

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
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the lock dies with the process that holds it.

    Raises ResourceError when the lock's file can't be made.
    """
    import fcntl

    try:
        file = path.open("ab")
    except OSError as error:
        raise ResourceError(
            f"can't write into the cache directory {path.parent}: {error.strerror}; "
            "set OCTAVO_CACHE to a directory that can be written"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
