"""The C library's choice is taken where there is one."""

from __future__ import annotations

import ctypes
import platform

import pytest

from octavo.core.allocator import keep_freed_memory, return_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_glibc_takes_it() -> None:
    assert keep_freed_memory()


def test_a_library_without_the_choice_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
    assert not return_freed_memory()
