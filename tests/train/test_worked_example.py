"""The worked example of docs/training.md: every number of it, in exact fractions and in torch."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
grids = pytest.importorskip("octavo.train.grids")

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
W, STEP = Fraction("0.7364"), Fraction(2, 15)
ZERO = 8


def trained(step: Any) -> tuple[Any, Any, Any]:
    """(rounded weight, output, gradient of the weight)"""
    w = torch.tensor(float(W), dtype=torch.float64, requires_grad=True)
    step = torch.tensor(float(step), dtype=torch.float64)
    rounded = grids.round_to_grid(w, step, grids.IntegerGrid.signed(4))
    output = 1.5 * rounded
    output.backward(torch.tensor(2.0, dtype=torch.float64))
    return rounded.item(), output.item(), w.grad.item()


def test_in_exact_fractions() -> None:
    q = round(W / STEP)
    assert (q, q + ZERO) == (6, 14)
    assert round(float(W / STEP), 3) == 5.523
    assert q * STEP == Fraction("0.8000")
    assert q * STEP * Fraction("1.5") == Fraction("1.2000")
    assert q * Fraction("0.1333") == Fraction("0.7998")
    assert q * Fraction("0.1333") * Fraction("1.5") == Fraction("1.19970")
    gradient = Fraction(2) * Fraction("1.5")
    assert W - Fraction("0.1") * gradient == Fraction("0.4364")


def test_in_torch() -> None:
    rounded, output, gradient = trained(STEP)
    assert rounded == 0.8
    assert output == pytest.approx(1.2, abs=2**-51)
    assert gradient == 3.0
    assert float(W) - 0.1 * gradient == pytest.approx(0.4364, abs=2**-52)
    printed = trained(Fraction("0.1333"))
    assert printed[:2] == pytest.approx((0.7998, 1.1997), abs=2**-51)


def test_one_step_of_an_optimizer_gives_the_new_weight() -> None:
    w = torch.nn.Parameter(torch.tensor(float(W), dtype=torch.float64))
    step = torch.tensor(float(STEP), dtype=torch.float64)
    optimizer = torch.optim.SGD([w], lr=0.1)
    (1.5 * grids.round_to_grid(w, step, grids.IntegerGrid.signed(4)) * 2.0).backward()
    optimizer.step()
    assert w.item() == pytest.approx(0.4364, abs=2**-52)


def test_without_the_estimator_the_gradient_is_zero() -> None:
    w = torch.tensor(float(W), dtype=torch.float64, requires_grad=True)
    (1.5 * torch.round(w / float(STEP)) * float(STEP)).backward(torch.tensor(2.0).double())
    assert w.grad.item() == 0


def test_sixteen_points_from_minus_one_to_one_hold_neither_zero_nor_four_fifths() -> None:
    points = [Fraction(-1) + k * STEP for k in range(16)]
    assert (points[0], points[-1]) == (-1, 1)
    assert Fraction(0) not in points
    assert Fraction(4, 5) not in points
    assert all((15 * point).denominator == 1 and (15 * point) % 2 == 1 for point in points)
    nearest = sorted(points, key=lambda point: abs(point - Fraction(4, 5)))[:2]
    assert sorted(nearest) == [Fraction(11, 15), Fraction(13, 15)]
    codes = [(code - ZERO) * STEP for code in range(16)]
    assert Fraction(0) in codes
    assert Fraction(4, 5) in codes
    assert [round(float(c), 4) for c in (codes[0], codes[-1])] == [-1.0667, 0.9333]


def test_the_page_runs_and_says_so() -> None:
    page = PAGE.read_text(encoding="utf-8")
    example = page.split("## One weight by hand")[1]
    code = re.search(r"```python\n(.*?)```", example, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code.group(1), names)
    found = (names["rounded"].item(), names["output"].item(), names["w"].grad.item())
    assert found == pytest.approx((0.8, 1.2, 3.0), abs=2**-51)
    stated = (" 6 |", " 14 |", "0.8000", "1.2000", "0.7998 and 1.1997", " 3.0 |", " 0 |", "0.4364")
    for number in (*stated, "neither\n0 nor 0.8", "0.7333", "0.8667", "1.0667", "0.9333"):
        assert number in example, number
