"""Sizes and rates as people write them."""

from __future__ import annotations

import re

import click

_UNITS = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip


class SizeType(click.ParamType[float]):
    """`24GB`, `1.5TiB`, `800M`: decimal units unless an i says binary; "/s" where it is a rate."""

    def __init__(self, rate: bool) -> None:
        self.name = "bandwidth" if rate else "size"
        self._pattern = re.compile(
            r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?" + ("(?:/s)?" if rate else ""), re.IGNORECASE
        )
        self._example = "1008GB/s" if rate else "24GB"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = self._pattern.fullmatch(str(value).strip())
        size = float(match[1]) * _UNITS.get(match[2].lower(), 0) if match else 0.0
        if not 0 < size < 1e18:
            self.fail(f"{value!r} is no positive {self.name} such as {self._example}", param, ctx)
        return size
