"""A run's losses as a picture: plain SVG, one panel for training and one for held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from octavo.io.mapping import replacing
from octavo.train.checkpoints import Curve
from octavo.train.config import TrainReport

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 220, 64, 28  # of a panel's plot, and the margins around it
_TICKS = 5


def draw(report: TrainReport) -> str:
    """SVG text. Both panels share the steps below; a curve of one point is a dot."""
    panels = [(f"training: {report.loss}", report.train, "#1f77b4")]
    panels.append((f"held out: {report.watched}", report.held_out, "#d62728"))
    shown = [panel for panel in panels if panel[1]]
    last = max(1, report.steps)
    height = len(shown) * (_HEIGHT + 2 * _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + 2 * _LEFT} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH + 2 * _LEFT}" height="{height}" fill="white"/>',
    ]
    for index, (title, curve, color) in enumerate(shown):
        top = index * (_HEIGHT + 2 * _TOP) + _TOP
        parts += _panel(title, curve, color, last, top)
    return "\n".join([*parts, "</svg>", ""])


def save_curves(report: TrainReport, path: Path) -> None:
    """Write the picture. ResourceError when it can't be written."""
    with replacing(path) as file:
        file.write(draw(report).encode())


def _panel(title: str, curve: Curve, color: str, last: int, top: int) -> list[str]:
    low, high = _range([loss for _, loss in curve])
    points = [
        (_LEFT + _WIDTH * step / last, top + _HEIGHT * (high - loss) / (high - low))
        for step, loss in curve
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return [
        f'<text x="{_LEFT}" y="{top - 8}">{escape(title)}, nats per token</text>',
        *_axes(low, high, last, top),
        f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{color}"/>' for x, y in points[-1:]),
    ]


def _axes(low: float, high: float, last: int, top: int) -> list[str]:
    lines = [
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" '
        'stroke="#999"/>'
    ]
    for i in range(_TICKS):
        share = i / (_TICKS - 1)
        x, y = _LEFT + _WIDTH * share, top + _HEIGHT * (1 - share)
        value = low + (high - low) * share
        lines += [
            f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>',
            f'<text x="{x:.1f}" y="{top + _HEIGHT + 15}" text-anchor="middle">'
            f"{last * share:.4g}</text>",
        ]
    return lines


def _range(values: Sequence[float]) -> tuple[float, float]:
    """What the axis spans: the values, or a little around a single one."""
    low, high = min(values), max(values)
    if low == high:
        spread = abs(low) * 0.05 or 1.0
        return low - spread, high + spread
    assert math.isfinite(low)
    assert math.isfinite(high)
    return low, high
