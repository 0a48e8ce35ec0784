"""The table of `octavo doctor --limits`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from octavo.cli.output import Align, emit_json, human_binary, markdown_table
from octavo.core.hardware import Machine
from octavo.evals.limits import Limits, Sample, measure_limits

HEADER = ("limit", "threads", "median", "best", "unit", "spread")
ALIGN: tuple[Align, ...] = ("left", "right", "right", "right", "left", "right")
Row = tuple[str, str, str, str, str, str]


def show_limits(machine: Machine, as_json: bool, save: Path | None) -> None:
    """Measure, print, and write to `save` where one is named."""
    limits = measure_limits(machine)
    if save is not None:
        save.write_text(json.dumps(dataclasses.asdict(limits), indent=2) + "\n", encoding="utf-8")
    if as_json:
        emit_json(dataclasses.asdict(limits))
        return
    click.echo(f"{machine.cpu}, {limits.isa}, {limits.threads} usable threads\n")
    click.echo(markdown_table(HEADER, limit_rows(limits), ALIGN))


def limit_rows(limits: Limits) -> list[Row]:
    """Reads in GB/s, arithmetic in Gop/s (a multiplication and an addition are two)."""
    rows = [
        _row(f"read {r.level}, {human_binary(r.bytes)}", r.threads, r.rate, 1e-9, "GB/s")
        for r in limits.reads
    ]
    rows += [
        _row(f"{p.kind}, {p.instruction}", p.threads, p.rate, 1e-9, "Gop/s") for p in limits.peaks
    ]
    rows += [_row("barrier", threads, found, 1e9, "ns") for threads, found in limits.barriers]
    if limits.clock is not None:
        rows.append(_row("clock", 1, limits.clock, 1e-9, "GHz"))
    return rows


def _row(name: str, threads: int, found: Sample, factor: float, unit: str) -> Row:
    median, best = found.median * factor, found.best * factor
    return name, str(threads), _figure(median), _figure(best), unit, f"{found.spread:.0%}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
