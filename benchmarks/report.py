"""Tables of `versus.py`, from its records."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ratios import Verdict
from rich.table import Table

Sections = Mapping[str, Mapping[str, Any]]


def rates_table(model: str, sections: Sections) -> Table:
    """Median tokens per second (lowest to highest), a line for each engine."""
    rates = gathered(sections)
    tasks = list(dict.fromkeys(task for by_task in rates.values() for task in by_task))
    peaks = sections.get("memory", {}).get("peak_bytes", {})
    table = Table("engine", *tasks, "peak MB", title=f"{model}, tokens per second")
    for name, by_task in rates.items():
        cells = [cell(by_task.get(task, ())) for task in tasks]
        peak = f"{peaks[name] / 1e6:.0f}" if name in peaks else ""
        table.add_row(name, *cells, peak)
    return table


def gathered(sections: Sections) -> dict[str, dict[str, Sequence[float]]]:
    """rates[contender][task] over all sections."""
    rates: dict[str, dict[str, Sequence[float]]] = {}
    for record in sections.values():
        for name, by_task in record.get("rates", {}).items():
            rates.setdefault(name, {}).update(by_task)
    return rates


def cell(samples: Sequence[float]) -> str:
    """`303.9 (170.2-338.1)`; blank without samples."""
    if not samples:
        return ""
    return f"{statistics.median(samples):.1f} ({min(samples):.1f}-{max(samples):.1f})"


def settings_lines(sections: Sections) -> Iterator[str]:
    """What each rival ran with, and who could not do what."""
    for name, uses in sections.get("settings", {}).get("chosen", {}).items():
        for use, setup in uses.items():
            switches = {k: v for k, v in setup.items() if k in SWITCHES}
            yield f"{name}, {use}: " + ", ".join(f"{k} {v}" for k, v in switches.items())
    for section, record in sections.items():
        for name, why in record.get("unable", {}).items():
            yield f"{name} has no {section}: {why}"
        spreads = record.get("probe_spread", ())
        if spreads:
            yield "bandwidth probes spread " + ", then ".join(f"{s:.0%}" for s in spreads)


SWITCHES = ("threads", "flash_attention", "repack", "kv", "model")


def verdict_table(found: Sequence[Verdict]) -> Table:
    table = Table("model", "bar", "goal", "figure", "met", "short by")
    for verdict in found:
        met = {True: "yes", False: "MISSED", None: "not measured"}[verdict.met]
        table.add_row(verdict.model, verdict.bar, verdict.goal, verdict.figure, met, verdict.miss)
    return table
