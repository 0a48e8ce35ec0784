"""Curves over batch sizes as an SVG picture, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 460, 70, 40, 170, 50
COLOURS = (
    "#1b6ca8",
    "#c8553d",
    "#2e8b57",
    "#8a5fa8",
    "#b8860b",
    "#444444",
    "#d06fa0",
    "#20a0a0",
    "#7a5230",
)


def svg(curves: Mapping[str, Mapping[int, float]], title: str) -> str:
    """One line a curve, a dot a point, a legend on the right."""
    places = [(b, rate) for curve in curves.values() for b, rate in curve.items()]
    spans = tuple((min(v), max(v)) for v in zip(*places, strict=True))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
        *_axes(spans, sorted({batch for batch, _ in places})),
    ]
    for number, (name, curve) in enumerate(curves.items()):
        parts += _line(number, name, [_place(b, curve[b], spans) for b in sorted(curve)])
    return "\n".join([*parts, "</svg>\n"])


Spans = tuple[tuple[float, float], ...]


def _place(batch: float, rate: float, spans: Spans) -> tuple[float, float]:
    """Pixels of a point."""
    x, y = (_share(value, span) for value, span in zip((batch, rate), spans, strict=True))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return LEFT + x * wide, TOP + (1 - y) * high


def _share(value: float, span: tuple[float, float]) -> float:
    low, high = span
    return math.log(value / low) / math.log(high / low) if high > low else 0.5


def _axes(spans: Spans, batches: list[int]) -> list[str]:
    """A tick for every batch, and for 1, 2 and 5 times the powers of ten in range."""
    parts = []
    low, high = spans[1]
    for batch in batches:
        x, y = _place(batch, low, spans)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{batch}</text>')
    for step in (m * 10**e for e in range(7) for m in (1, 2, 5)):
        if low <= step <= high:
            x, y = _place(spans[0][0], step, spans)
            end = WIDTH - RIGHT
            parts.append(f'<line x1="{x}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{x - 8}" y="{y + 4:.1f}" text-anchor="end">{step}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">sequences</text>')
    return parts


def _line(number: int, name: str, points: list[tuple[float, float]]) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = WIDTH - RIGHT + 14, TOP + 16 * (number + 1)
    dots = [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *dots,
        f'<text x="{x}" y="{y}" fill="{colour}">{escape(name)}</text>',
    ]
