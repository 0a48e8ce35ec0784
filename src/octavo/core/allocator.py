"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory(kept: int = 512 << 20, mapped_from: int = 128 << 20) -> bool:
    """Let the process keep up to `kept` freed bytes, and take blocks below `mapped_from` from them.

    glibc otherwise gives large blocks back as soon as they are freed, and the system clears the
    same pages anew for every temporary of the next operation. It stays so for the process's life:
    for commands, not for libraries. False where the C library has no such choice.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, kept) and mallopt(_M_MMAP_THRESHOLD, mapped_from))


def return_freed_memory() -> bool:
    """Give what is freed and kept back to the system. False where the C library can't, or has
    nothing to give."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False
