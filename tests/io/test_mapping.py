"""Mappings: reads within the file only, pages given back, close with views still held."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from octavo.core.errors import ModelFileError, ResourceError
from octavo.io.mapping import FileMapping, replacing


def resident(path: Path) -> int:
    """Kilobytes of this file's pages mapped into this process now."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    rss = next(line for line in lines[start:] if line.startswith("Rss:"))
    return int(rss.split()[1])


def test_reads_stay_within_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    mapping = FileMapping(path)
    assert mapping.size == 100
    assert mapping.view(10, 3, "x").tolist() == [10, 11, 12]
    assert mapping.view(100, 0, "nothing").size == 0
    for offset, length in ((98, 3), (-1, 1), (0, 101), (0, -1), (2**70, 1)):
        with pytest.raises(ModelFileError, match=f"offset {offset}: the thing needs {length} "):
            mapping.view(offset, length, "the thing")


def test_views_are_read_only_and_outlive_close(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    mapping = FileMapping(path)
    view = mapping.view(0, 3, "x")
    mapping.close()
    assert view.tobytes() == b"abc"
    assert not view.flags.writeable


def test_drop_gives_pages_back_and_reads_fault_them_in(tmp_path: Path) -> None:
    path = tmp_path / "a"
    pages = 64
    data = np.arange(pages * mmap.PAGESIZE, dtype=np.uint32).astype(np.uint8)
    path.write_bytes(data.tobytes())
    mapping = FileMapping(path)
    view = mapping.view(0, mapping.size, "all")
    assert (view == data).all()
    before = resident(path)
    mapping.drop(10, mapping.size // 2)
    assert resident(path) < before
    mapping.drop(0, mapping.size)
    assert resident(path) == 0
    assert (view == data).all()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, message in (("none", "no such file"), ("empty", "is empty"), ("", "a directory")):
        with pytest.raises(ModelFileError, match=message):
            FileMapping(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions don't bind root")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(ModelFileError, match="can't be read"):
        FileMapping(path)


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(bytes([1 // len(path.read_bytes()[3:])]))
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="none/a: can't be written"),
        replacing(tmp_path / "none" / "a"),
    ):
        raise AssertionError("must not get here")


def test_a_written_file_has_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(ResourceError, match=r"No space left.*free space"), replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="a pipe or a device"):
        FileMapping(tmp_path / "pipe")
