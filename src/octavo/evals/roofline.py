"""A speed as a share of the limit that binds it (roofline, Williams et al. 2009).

A token needs so many bytes read and so many operations done. Each, at the rate that a bare loop on
the same threads reaches, takes some time; its share is that time over the time really taken. The
larger of the two binds.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from octavo.evals.limits import KINDS, LOOP_SECONDS, Kind, native_core

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.backends.base import KernelUse, Receipt

# Activations as receipts name them -> the unit that multiplies, and its passes over the weights.
_UNITS: Mapping[str, tuple[Kind, int]] = MappingProxyType(
    {
        "a8": ("int8", 1),
        "a8a16": ("int8", 1),  # at least: what its wide rows add is left out
        "a16": ("int8", 2),
        "abf16": ("bf16", 1),
        "a32": ("f32", 1),
    }
)


@dataclass(frozen=True, slots=True)
class Work:
    """What one token needs: bytes of weights, and operations by unit."""

    bytes: float
    operations: tuple[tuple[Kind, float], ...]


@dataclass(frozen=True, slots=True)
class Roofs:
    """Rates of bare loops: bytes per second, and operations per second by unit."""

    memory: float
    peaks: tuple[tuple[Kind, float], ...]


@dataclass(frozen=True, slots=True)
class Share:
    """How much of the time taken the memory alone, and the arithmetic alone, would have needed."""

    memory: float
    compute: float

    @property
    def bound(self) -> Literal["memory", "compute"]:
        return "memory" if self.memory >= self.compute else "compute"

    @property
    def value(self) -> float:
        """The share of the limit that binds."""
        return max(self.memory, self.compute)

    def __str__(self) -> str:
        limit = "the memory's speed" if self.bound == "memory" else "the arithmetic peak"
        return f"{self.value:.0%} of {limit}"


@runtime_checkable
class ReadsWeights(Protocol):
    """An executor that can read its own weights and do nothing else with them."""

    def read_weights(self, passes: int) -> float:
        """Seconds of reading what a token reads `passes` times, with the executor's threads."""


def work(receipt: Receipt, rows: int = 1) -> Work:
    """A token's part of a step of `rows` rows, which reads the weights once."""
    operations = dict.fromkeys(KINDS, 0.0)
    for use in receipt.kernels:
        unit, passes = _unit(use)
        operations[unit] += 2.0 * passes * use.products
    return Work(receipt.bytes_per_token / rows, tuple(operations.items()))


def _unit(use: KernelUse) -> tuple[Kind, int]:
    return _UNITS.get(use.activations.split("_")[0], ("int8", 1))


def share(tokens_per_second: float, work: Work, roofs: Roofs) -> Share:
    """Of a speed, under limits measured beside it."""
    peaks = dict(roofs.peaks)
    compute = sum(count / peaks[kind] for kind, count in work.operations if count)
    return Share(tokens_per_second * work.bytes / roofs.memory, tokens_per_second * compute)


def arithmetic_peaks(receipt: Receipt, seconds: float = LOOP_SECONDS) -> dict[Kind, float]:
    """Operations per second of the receipt's threads and ISA; for other backends the best ISA's."""
    from octavo.core.hardware import probe

    isa = receipt.isa if receipt.backend == "native" else ""
    loops = native_core().MachineProbe(receipt.threads, probe().threads, isa)
    return {kind: loops.peak(kind, seconds) for kind in KINDS}


def weights_speed(executor: ReadsWeights, receipt: Receipt, seconds: float = 0.02) -> float:
    """Bytes per second at which the executor's threads read its own weights: at least three passes,
    the median of them."""
    once = executor.read_weights(1)
    passes = max(3, min(25, int(seconds / once)))
    times = sorted(executor.read_weights(1) for _ in range(passes))
    return receipt.bytes_per_token / times[len(times) // 2]
