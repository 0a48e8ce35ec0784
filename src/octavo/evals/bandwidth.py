"""How fast this machine reads memory: the roof over decoding.

A buffer of the size that a token reads is read again and again, by as many threads. The level of
the memory hierarchy it stays in is then the one that decoding reads from, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PROBE_SECONDS = 0.2
Probe = Callable[[int, int], "Bandwidth"]


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Speed found by one probe of `bytes` bytes and `threads` threads; `probe` names what read."""

    bytes_per_second: float
    bytes: int
    threads: int
    probe: str


def read_bandwidth(size: int, threads: int, seconds: float = PROBE_SECONDS) -> Bandwidth:
    """Read `size` bytes cyclically with `threads` native threads for about `seconds`.

    Raises UnsupportedError without the native core, MemoryError without memory for the buffer.
    """
    from octavo.core.hardware import probe
    from octavo.evals.limits import native_core

    reader = native_core().MachineProbe(threads, probe().threads)
    return Bandwidth(reader.read(size, seconds), size, threads, "native")
