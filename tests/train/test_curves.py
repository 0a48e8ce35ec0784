"""The picture: well-formed, every point in its place and inside its panel."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from octavo.train.config import TrainReport
from octavo.train.curves import draw, save_curves

SVG = "{http://www.w3.org/2000/svg}"
TRAIN = ((1, 4.0), (2, 3.0), (3, 3.5), (4, 2.0))


def report(**more: object) -> TrainReport:
    values = {"train": TRAIN, "held_out": ((0, 1.0), (4, 0.5)), "loss": "labels", "watched": "kl"}
    return TrainReport(4, False, 4, **{**values, **more})  # type: ignore[arg-type]


def lines(text: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(text)
    return [
        [(float(x), float(y)) for x, y in (p.split(",") for p in line.attrib["points"].split())]
        for line in root.iter(f"{SVG}polyline")
    ]


def test_points_lie_where_steps_and_losses_say() -> None:
    train, held_out = lines(draw(report()))
    assert len(train) == 4
    left, right = held_out[0][0], held_out[1][0]
    assert [x for x, _ in train] == pytest.approx(
        [left + (right - left) * step / 4 for step, _ in TRAIN], abs=0.1
    )
    heights = [y for _, y in train]
    assert heights[0] < heights[2] < heights[1] < heights[3]  # SVG's y grows downwards
    middle = (heights[0] + heights[3]) / 2
    assert heights[1] == pytest.approx(middle, abs=0.1)
    assert held_out[0][1] > heights[3]  # another panel


def test_names_are_escaped_and_shown() -> None:
    text = draw(report(loss="a<b & c"))
    words = [element.text or "" for element in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert any("training: a<b & c" in word for word in words)
    assert any("held out: kl" in word for word in words)


@pytest.mark.parametrize("held_out", [((0, 0.0),), ((0, 2.5), (4, 2.5))])
def test_a_flat_curve_is_drawn(held_out: tuple[tuple[int, float], ...]) -> None:
    assert len(lines(draw(report(train=(), held_out=held_out)))) == 1


def test_it_is_written(tmp_path: Path) -> None:
    save_curves(report(), tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_text() == draw(report())
