"""A directory that is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.core.errors import ResourceError, UserError


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """An empty directory that takes `out`'s name when the block ends well; else nothing is left.

    Raises UserError when `out` exists, ResourceError when it can't be written.
    """
    if out.exists():
        raise UserError(f"{out} exists: remove it, or choose another output (-o)")
    directory = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        directory.mkdir(parents=True)
        yield directory
        directory.rename(out)
    except OSError as error:
        raise ResourceError(
            f"{out}: can't be written ({error.strerror or error}): check the directory's "
            "permissions and its free space"
        ) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
