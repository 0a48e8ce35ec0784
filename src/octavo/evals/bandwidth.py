"""How fast this machine reads memory: the roof over decoding.

A buffer of the size that a token reads is read again and again, by as many threads. The level of
the memory hierarchy it stays in is then the one that decoding reads from, too.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WORD = np.dtype(np.int32)
MIN_PART = 1 << 16  # bytes a thread reads a pass at least, or starting it costs more than reading
Reader = Callable[[int, int, float], float]


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Speed found by `probe`: "native", or "numpy" (whose reductions may stay below the roof)."""

    bytes_per_second: float
    bytes: int
    threads: int
    probe: str


def read_bandwidth(size: int, threads: int, seconds: float = 0.2) -> Bandwidth:
    """Read `size` bytes cyclically with `threads` threads for about `seconds`."""
    native = native_reader()
    if native is not None:
        return Bandwidth(native(size, threads, seconds), size, threads, "native")
    return Bandwidth(_numpy_rate(size, threads, seconds), size, threads, "numpy")


def native_reader() -> Reader | None:
    """The native probe (bytes, threads, seconds) -> bytes per second, where this build has it."""
    try:
        native = importlib.import_module("octavo._native")
    except ImportError:
        return None
    reader: Reader | None = getattr(native, "read_bandwidth", None)
    return reader


def _numpy_rate(size: int, threads: int, seconds: float) -> float:
    """Every thread reduces its own part; numpy releases the GIL while it does."""
    threads = max(1, min(threads, size // MIN_PART))
    buffer = np.ones(max(1, size // WORD.itemsize), WORD)
    parts = np.array_split(buffer, threads)
    with ThreadPoolExecutor(threads) as pool:
        passes = 0
        begin = time.perf_counter()
        while not passes or time.perf_counter() - begin < seconds:
            list(pool.map(_read, parts))
            passes += 1
        return passes * buffer.nbytes / (time.perf_counter() - begin)


def _read(part: npt.NDArray[np.int32]) -> int:
    return int(np.bitwise_xor.reduce(part))
