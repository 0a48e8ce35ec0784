"""How numbers and tables look on the terminal; no imports beyond the standard library and click."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import click

Align = Literal["left", "right"]
KIBI = 1024.0


def emit_json(value: object) -> None:
    """Print one JSON object on stdout. Dataclasses become objects, sets sorted lists."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2, allow_nan=False))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, frozenset):
        return sorted(value)
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[Align]
) -> str:
    """A table in llama-bench's markdown: padded cells, a colon where a column is right-bound."""
    widths = [
        max(len(row[i]) for row in [header, *rows]) if rows else len(name)
        for i, name in enumerate(header)
    ]
    lines = [_cells(header, widths, align), _rule(widths, align)]
    return "\n".join(lines + [_cells(row, widths, align) for row in rows])


def _cells(row: Sequence[str], widths: Sequence[int], align: Sequence[Align]) -> str:
    padded = [
        cell.rjust(width) if side == "right" else cell.ljust(width)
        for cell, width, side in zip(row, widths, align, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"


def _rule(widths: Sequence[int], align: Sequence[Align]) -> str:
    marks = [
        "-" * (width + 1) + ":" if side == "right" else "-" * (width + 2)
        for width, side in zip(widths, align, strict=True)
    ]
    return "|" + "|".join(marks) + "|"


def human_binary(size: float) -> str:
    """Bytes in powers of 1024, as llama-bench prints sizes: `72.32 MiB`, `1.09 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < KIBI:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= KIBI
    return f"{size:.2f} GiB"


def human_decimal(size: float) -> str:
    """Bytes in powers of 1000: `75.6 MB`, `1.21 GB`."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def speed(rate: float) -> str:
    """Tokens a second, three figures or whole: `8.43`, `75.6`, `214`."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def summary_line(
    rate: float, bytes_per_token: int, kernels: Sequence[str], threads: int, share: str = ""
) -> str:
    """`214 tok/s · 75.6 MB/token · 16.2 GB/s, 84% of the memory's speed · linear_a8_w4_avx512vnni ·
    2 threads`."""
    parts = [
        f"{speed(rate)} tok/s",
        f"{human_decimal(bytes_per_token)}/token",
        f"{rate * bytes_per_token / 1e9:.1f} GB/s" + (f", {share}" if share else ""),
        " + ".join(kernels),
        f"{threads} thread" + ("s" if threads != 1 else ""),
    ]
    return " · ".join(part for part in parts if part)


def requantized_line(formats: Iterable[str]) -> str:
    """What the first line says when a lossy format was asked for."""
    names = ", ".join(sorted(set(formats)))
    return f"requantized, quality not measured ({names}; the reference is the file as it is)"


def warn(notes: Iterable[str]) -> None:
    """Those of a receipt's notes that nobody may miss, to the error stream."""
    for note in notes:
        if note.startswith("WARNING"):
            click.echo(note, err=True)


def unread_line(keys: Sequence[str]) -> str:
    """Keys of a config that nothing reads. They come from an untrusted file: none may steer the
    terminal."""
    names = ", ".join(key if key.isprintable() else repr(key) for key in keys)
    return f"config keys that nothing reads: {names}"


def fields(values: Mapping[str, str]) -> str:
    """`name   value` lines with the values in one column."""
    width = max(map(len, values), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())
