"""`octavo fit`: what fits into memory, and how fast it can be at most, from a config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from octavo.cli.options import MAX_CONTEXT, json_option
from octavo.cli.output import emit_json, human_decimal, speed
from octavo.cli.sizes import SizeType

if TYPE_CHECKING:
    from rich.table import Table

    from octavo.cli.footprint import WeightBytes
    from octavo.spec.decoder import DecoderSpec

FORMATS = (
    "fp32", "bf16", "int8_g32", "int6_g32", "int5_g32", "int4_g32", "int3_g32", "int2_g32",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FitRow:
    """One format. Sizes in bytes; speeds in tokens a second, None without a bandwidth."""

    format: str
    weights: float  # parameters * bits / 8
    scales: float  # scales, and fp32 norms beyond their share of `weights`
    kv: int  # bf16 keys and values of one sequence of `context` tokens
    total: float
    fits: bool
    longest_context: int
    bytes_per_token: float  # weights read for a token
    tokens_per_second: float | None  # at most, at an empty context
    tokens_per_second_at_context: float | None  # at most, reading all of `kv` too


@dataclass(frozen=True, slots=True)
class FitReport:
    """What `--json` prints. `impossible`: formats that some shape can't take, and why."""

    model: str
    family: str
    parameters: int
    memory: float
    bandwidth: float | None
    context: int
    rows: tuple[FitRow, ...]
    impossible: tuple[tuple[str, str], ...]


@click.command()
@click.argument("model")
@click.option("--memory", type=SizeType(False), help="Such as 24GB. [default: this machine's]")
@click.option("--bandwidth", type=SizeType(True), help="Memory bandwidth, such as 1008GB/s.")
@click.option(
    "--context",
    type=click.IntRange(1, MAX_CONTEXT),
    help="Tokens of one sequence. [default: the model's maximum]",
)
@json_option
def command(
    model: str,
    memory: float | None,
    bandwidth: float | None,
    context: int | None,
    as_json: bool,
) -> None:
    """Say at which formats MODEL fits into memory, and how fast it can be at most.

    MODEL may be a config.json or a directory without weights: none are read.
    """
    from octavo.io.checkpoint import read_header
    from octavo.io.hub import resolve_config

    spec = read_header(resolve_config(model)).spec
    tokens = _checked_context(spec, context)
    report = fit(spec, model, memory or _machine_memory(), bandwidth, tokens)
    emit_json(report) if as_json else _print(report)


def fit(
    spec: DecoderSpec, model: str, memory: float, bandwidth: float | None, context: int
) -> FitReport:
    """Every format of FORMATS against `memory` bytes and `bandwidth` bytes a second."""
    from octavo.cli.footprint import WeightBytes, footprint, try_weight_bytes

    counted = footprint(spec)
    sizes = {name: try_weight_bytes(counted, name) for name in FORMATS}
    rows = tuple(
        _row(spec, name, size, memory, bandwidth, context)
        for name, size in sizes.items()
        if isinstance(size, WeightBytes)
    )
    refused = tuple(
        (name, str(size)) for name, size in sizes.items() if not isinstance(size, WeightBytes)
    )
    return FitReport(
        model, spec.family, counted.parameters, memory, bandwidth, context, rows, refused
    )


def _row(
    spec: DecoderSpec,
    name: str,
    size: WeightBytes,
    memory: float,
    bandwidth: float | None,
    context: int,
) -> FitRow:
    from octavo.cli.footprint import kv_bytes, longest_context

    kv = kv_bytes(spec, context)
    return FitRow(
        format=name,
        weights=size.pure,
        scales=size.extra,
        kv=kv,
        total=size.total + kv,
        fits=size.total + kv <= memory,
        longest_context=longest_context(spec, memory - size.total),
        bytes_per_token=size.per_token,
        tokens_per_second=bandwidth and bandwidth / size.per_token,
        tokens_per_second_at_context=bandwidth and bandwidth / (size.per_token + kv),
    )


def _checked_context(spec: DecoderSpec, context: int | None) -> int:
    from octavo.core.errors import RequestError

    if context is not None and context > spec.max_positions:
        raise RequestError(
            f"--context {context} is beyond the {spec.max_positions} positions of this model. "
            "Ask for fewer.",
            param="context",
        )
    return context or spec.max_positions


def _machine_memory() -> float:
    from octavo.core.hardware import probe

    memory = probe().memory
    return float(memory.limit or memory.total)


def _print(report: FitReport) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(
        f"{report.model}: {report.family}, {report.parameters / 1e9:.3g} billion parameters; "
        f"memory {human_decimal(report.memory)}, context {report.context:,} tokens"
    )
    console.print(_table(report))
    console.print(
        f"weights: parameters x bits / 8. scales: with fp32 norms. KV: one sequence of "
        f"{report.context:,} tokens in bf16. longest: context that fits. tok/s: at most, at an "
        "empty and at a full context. Activations and the program come on top."
    )
    for name, reason in report.impossible:
        console.print(f"{name}: {reason}")
    if report.bandwidth is None:
        console.print("Give --bandwidth to see how fast it can be at most.")


def _table(report: FitReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("format", no_wrap=True)
    names = ["weights", "scales", "KV", "total", "fits", "longest"]
    rates = ["tok/s", "full"] if report.bandwidth is not None else []
    for name in names + rates:
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: FitRow) -> list[str]:
    cells = [row.format, *(_size(x) for x in (row.weights, row.scales, row.kv, row.total))]
    cells += ["yes" if row.fits else "no", f"{row.longest_context:,}"]
    rates = (row.tokens_per_second, row.tokens_per_second_at_context)
    return cells + [f"< {speed(rate)}" for rate in rates if rate is not None]


def _size(size: float) -> str:
    """Three figures from 10 GB on: nobody fits a model to the megabyte."""
    return f"{size / 1e9:.1f} GB" if size >= 1e10 else human_decimal(size)
