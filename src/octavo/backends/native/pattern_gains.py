"""What leaving out zeros gained: time and bytes of dense panels over those of a pattern, measured
on this machine (`octavo methods pruning --measure`), or else on the one that the record names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octavo.core.hardware import Machine
from octavo.io.cache import cache_directory, cache_root
from octavo.io.mapping import replacing

RECORD = Path(__file__).with_suffix(".json")  # written by benchmarks/sparse.py --record
_FILE = "pattern-gains.json"


@dataclass(frozen=True, slots=True)
class PatternGain:
    """Of weights beyond the caches: `bits` a code, `zeros` the share left out, `rows` of
    activations; dense over pattern, so above 1 is a gain."""

    pattern: str
    bits: int
    zeros: float
    rows: int
    smaller: float
    faster: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Where and when."""

    machine: str
    date: str
    gains: tuple[PatternGain, ...]

    def of(self, pattern: str, bits: int, zeros: float) -> tuple[PatternGain, ...]:
        """By rows: those of the pattern whose share of zeros is nearest."""
        mine = [gain for gain in self.gains if (gain.pattern, gain.bits) == (pattern, bits)]
        nearest = min((abs(gain.zeros - zeros) for gain in mine), default=0.0)
        near = (gain for gain in mine if abs(gain.zeros - zeros) == nearest)
        return tuple(sorted(near, key=lambda gain: gain.rows))


def machine_name(machine: Machine, isa: str) -> str:
    """What figures are kept under."""
    return f"{machine.cpu}, {isa}"


def recorded(machine: str) -> Measured:
    """What was measured on this machine, else the figures that come with Octavo."""
    found = _read(cache_root() / "measured" / _FILE).get(machine)
    if isinstance(found, dict):
        try:
            return _measured(found)
        except (KeyError, TypeError):
            pass  # a damaged file counts as none: it can be measured again
    return _measured(json.loads(RECORD.read_text(encoding="utf-8")))


def keep(measured: Measured) -> None:
    """Keep what was measured here. Raises ResourceError when that can't be written."""
    path = cache_directory("measured") / _FILE
    content = {**_read(path), measured.machine: asdict(measured)}
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def sentence(gains: Sequence[PatternGain]) -> str:
    """The figures of one pattern, bits and share in words: a loss is called one."""
    parts = []
    for gain in gains:
        rows = "1 row" if gain.rows == 1 else f"{gain.rows} rows"
        loss = ", a loss" if gain.faster < 1 else ""
        parts.append(f"{gain.faster:.2f} times as fast at {rows}{loss}")
    return "; ".join(parts)


def _measured(content: dict[str, Any]) -> Measured:
    gains = tuple(PatternGain(**gain) for gain in content["gains"])
    return Measured(str(content["machine"]), str(content["date"]), gains)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
