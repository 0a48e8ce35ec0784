"""`octavo formats`: number formats, and one of them drawn bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from octavo.cli.options import json_option
from octavo.cli.output import emit_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from octavo.formats.describe import Field, FormatFacts
    from octavo.formats.number_format import NumberFormat


@click.command()
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List number formats, or draw the one called NAME (such as int4_g32, bf16 or Q4_K)."""
    from octavo.formats.describe import describe
    from octavo.formats.number_format import COMMON_NAMES, NumberFormat

    if name is not None:
        chosen = _named(name)
        emit_json(describe(chosen)) if as_json else _draw(chosen)
        return
    facts = [describe(NumberFormat.parse(each)) for each in COMMON_NAMES]
    emit_json({"formats": facts}) if as_json else _list(facts)


def _named(name: str) -> NumberFormat:
    from octavo.formats.gguf_formats import GGUF_FORMATS
    from octavo.formats.number_format import NumberFormat

    gguf = GGUF_FORMATS.get(name.strip().upper())
    return gguf or NumberFormat.parse(name)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _list(facts: list[FormatFacts]) -> None:
    from octavo.backends.native.recipe import native_bits
    from octavo.formats.number_format import NumberFormat

    table = _table("format", "GGUF", "codes", "b/w 576", "b/w 4096", "native")
    for each in facts:
        sizes = [_size(bits) for bits in each.bits_per_weight.values()]
        codes = f"{each.codes:,}" if each.codes < 1 << 20 else f"{each.codes:.3g}"
        sizes.append(_size(native_bits(NumberFormat.parse(each.name), (4096, 4096))))
        table.add_row(each.name, each.gguf_type or "", codes, *sizes)
    console = _console()
    console.print(table)
    console.print("b/w: bits per weight, scales included, of a square weight this wide; -: no fit.")
    console.print("native: b/w 4096 as the native backend holds it in memory.")
    console.print(
        "Any other that fits the grammar works too: base_where[_asym|_offset][_sTYPE], "
        "such as int5_g64_asym or int4_channel_sfp32 (docs/formats.md)."
    )


def _draw(format: NumberFormat) -> None:
    from octavo.formats.describe import describe, patterns

    facts, console = describe(format), _console()
    title = f"{facts.name} (GGUF {facts.gguf_type})" if facts.gguf_type else facts.name
    console.print(title, style="bold")
    for pattern in patterns(format):
        line = _cells(pattern.bits, facts.fields)
        console.print(line, f" {_value(pattern.value, facts)}  {pattern.label}")
    console.print(_legend(facts.fields))
    console.print(_fact_table(facts))
    console.print(_part_table(facts))


def _cells(bits: str, fields: tuple[tuple[Field, int], ...]) -> Text:
    from rich.text import Text

    line, start = Text("  "), 0
    for name, width in fields:
        line.append(f"{bits[start : start + width]}", style=_style(name))
        line.append(" ")
        start += width
    return line


def _legend(fields: tuple[tuple[Field, int], ...]) -> Text:
    from rich.text import Text

    line = Text("  ")
    for name, width in fields:
        line.append(f" {name} {width} ", style=_style(name))
        line.append(" ")
    return line


def _style(field: Field) -> str:
    return {
        "sign": "black on bright_red",
        "exponent": "black on bright_cyan",
        "fraction": "black on bright_green",
        "code": "black on bright_yellow",
    }[field]


def _fact_table(facts: FormatFacts) -> Table:
    table = _table("", "")
    table.show_header = False
    table.add_row("a weight is", facts.weight)
    if facts.largest is not None and facts.smallest is not None:
        low, high = _value(facts.smallest, facts), _value(facts.largest, facts)
        table.add_row("range", f"{low} to {high}")
    if facts.smallest_step is not None:
        table.add_row("smallest step", _value(facts.smallest_step, facts))
    table.add_row("decimal digits", f"{facts.decimal_digits:.2f}")
    table.add_row("codes", f"{facts.codes:,}")
    for width, bits in facts.bits_per_weight.items():
        table.add_row(f"bits per weight, {width} x {width}", _size(bits))
    return table


def _part_table(facts: FormatFacts) -> Table:
    table = _table("stored", "bits", "for")
    for part in facts.parts:
        table.add_row(part.what, str(part.bits), part.shared_by)
    return table


def _table(*names: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(names):
        left = i == 0 or name in ("GGUF", "for", "")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _value(value: float, facts: FormatFacts) -> str:
    return f"{value:.6g}{' s' if facts.scaled else ''}"


def _size(bits: float | None) -> str:
    return "-" if bits is None else f"{bits:.4f}".rstrip("0").rstrip(".")
