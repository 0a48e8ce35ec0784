"""The machine's limits, measured: reading, arithmetic, barriers, the clock.

Every figure is taken several times in short probes, since a neighbour or a frequency change spoils
single ones: the best is the machine's, the median what one gets, the spread says how far to trust
both. Nothing is remembered from one call to the next.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from octavo.core.errors import UnsupportedError
from octavo.core.hardware import Machine

if TYPE_CHECKING:
    from types import ModuleType

Kind = Literal["int8", "bf16", "f32"]
KINDS: tuple[Kind, ...] = ("int8", "bf16", "f32")
PROBES = 7
READ_SECONDS, LOOP_SECONDS = 0.03, 0.004
MIN_MEMORY = 64 << 20  # bytes of the buffer that stands for memory, at least


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure from several probes, higher is better unless `best` says otherwise."""

    median: float
    best: float
    spread: float  # (largest - smallest) / median
    probes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ReadLimit:
    """Bytes per second of cyclic reads of `bytes` bytes, each thread its own part."""

    level: str  # "L2", "L3", "memory"
    threads: int
    bytes: int
    rate: Sample


@dataclass(frozen=True, slots=True)
class PeakLimit:
    """Multiplications and additions per second of a bare loop of `instruction`."""

    kind: Kind
    threads: int
    instruction: str
    rate: Sample


@dataclass(frozen=True, slots=True)
class Limits:
    """What this process can get of this machine with one kernel table.

    barriers: (threads, seconds of one barrier). clock: cycles per second, None where unknown.
    """

    isa: str
    threads: int
    reads: tuple[ReadLimit, ...]
    peaks: tuple[PeakLimit, ...]
    barriers: tuple[tuple[int, Sample], ...]
    clock: Sample | None


def native_core() -> ModuleType:
    """The extension module. Raises UnsupportedError where there is none."""
    try:
        return importlib.import_module("octavo._native")
    except ImportError as error:
        raise UnsupportedError(
            f"the native core can't be loaded ({error}): install octavo from a wheel, "
            "or build it with `make native`"
        ) from error


def spread(values: tuple[float, ...]) -> float:
    """(largest - smallest) / median, 0 of fewer than two."""
    return (max(values) - min(values)) / statistics.median(values) if len(values) > 1 else 0.0


def sample(probe: Callable[[], float], *, count: int = PROBES, low: bool = False) -> Sample:
    """`count` probes; `low`: the smallest is the best."""
    found = tuple(probe() for _ in range(count))
    best = min(found) if low else max(found)
    return Sample(statistics.median(found), best, spread(found), found)


def thread_counts(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself."""
    powers = (1 << i for i in range(most.bit_length()))
    return tuple(dict.fromkeys([*(n for n in powers if n < most), most]))


def read_sizes(machine: Machine, threads: int) -> dict[str, int]:
    """Bytes of a buffer that stays in each level, as `threads` threads read it in equal parts.

    L2 where a part fills half of one; L3 where all parts fill half of it and none fits into an L2;
    memory is four times the largest cache. Levels that the processor doesn't tell are left out.
    """
    levels = {c.level: c for c in machine.caches if c.kind in ("Data", "Unified")}
    largest = max((cache.size for cache in levels.values()), default=0)
    sizes: dict[str, int] = {}
    second, third = levels.get(2), levels.get(3)
    if second:
        sizes["L2"] = threads * second.size // 2
    if third and (not second or third.size // 2 >= 2 * threads * second.size):
        sizes["L3"] = third.size // 2
    return {**sizes, "memory": max(MIN_MEMORY, 4 * largest)}


def measure_limits(machine: Machine, isa: str = "", probes: int = PROBES) -> Limits:
    """Measure everything, for 1, 2, 4, ... threads up to what the process may use.

    Raises UnsupportedError when `isa` ("": OCTAVO_ISA, or the best) doesn't run here.
    """
    from octavo.backends.native.backend import resolve_isa

    name = resolve_isa(isa)
    core = native_core()
    reads: list[ReadLimit] = []
    peaks: list[PeakLimit] = []
    barriers: list[tuple[int, Sample]] = []
    for n in thread_counts(machine.threads):
        probe = core.MachineProbe(n, machine.threads, name)
        reads += _reads(probe, machine, n, probes)
        peaks += _peaks(probe, n, probes)
        if n > 1:
            found = sample(partial(probe.barrier, LOOP_SECONDS), count=probes, low=True)
            barriers.append((n, found))
    single = core.MachineProbe(1, machine.threads, name)
    clock = sample(partial(single.clock, LOOP_SECONDS), count=probes)
    return Limits(
        name, machine.threads, tuple(reads), tuple(peaks), tuple(barriers),
        clock if clock.best else None,
    )  # fmt: skip


def _reads(probe: object, machine: Machine, threads: int, probes: int) -> Iterator[ReadLimit]:
    read = probe.read  # type: ignore[attr-defined]
    for level, size in read_sizes(machine, threads).items():
        found = sample(partial(read, size, READ_SECONDS), count=probes)
        yield ReadLimit(level, threads, size, found)


def _peaks(probe: object, threads: int, probes: int) -> Iterator[PeakLimit]:
    peak, name = probe.peak, probe.instruction  # type: ignore[attr-defined]
    for kind in KINDS:
        found = sample(partial(peak, kind, LOOP_SECONDS), count=probes)
        yield PeakLimit(kind, threads, name(kind), found)
