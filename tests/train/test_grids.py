"""Grids: levels, clip ranges, and gradients against finite differences of the surrogate.

The surrogate of rounding is `x + constant`: what the straight-through estimator differentiates.
"""

from __future__ import annotations

from typing import Any

import pytest

from octavo.core.errors import FormatError

torch = pytest.importorskip("torch")
grids = pytest.importorskip("octavo.train.grids")

GRIDS = {
    "signed4": grids.IntegerGrid.signed(4),
    "symmetric3": grids.IntegerGrid.symmetric(3),
    "seq2": grids.StretchedGrid(4),
    "ternary": grids.StretchedGrid(3),
}


def surrogate(x: Any, step: Any, grid: Any, at: Any) -> Any:
    """What backward differentiates: rounding adds the constant that it adds at step `at`."""
    ratio = x / at
    inside = grid.inside(ratio)
    constant = grid.units(ratio) - ratio
    return torch.where(inside, x + step * constant, step * grid.units(ratio))


def test_levels_of_the_stretched_grids() -> None:
    ratio = torch.linspace(-2, 2, 4001)
    four, three = (torch.unique(grids.StretchedGrid(n).units(ratio)) for n in (4, 3))
    assert four.tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert torch.allclose(three, torch.tensor([-2 / 3, 0, 2 / 3]))


def test_stretched_cells_are_equally_wide() -> None:
    ratio = torch.linspace(-0.98, 0.98, 99)
    for cells in (3, 4, 8):
        units = grids.StretchedGrid(cells).units(ratio)
        assert (units - ratio).abs().max() <= 1 / cells + 1e-6


def test_integer_grids_round_half_to_even_and_clip() -> None:
    units = GRIDS["signed4"].units(torch.tensor([-9.0, -0.5, 0.5, 1.5, 7.5, 100.0]))
    assert units.tolist() == [-8, 0, 0, 2, 7, 7]
    assert GRIDS["symmetric3"].units(torch.tensor([-4.0, 4.0])).tolist() == [-3, 3]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("per_row", [False, True])
def test_gradients_are_those_of_the_surrogate(name: str, per_row: bool) -> None:
    grid, draws = GRIDS[name], torch.Generator().manual_seed(1)
    x = torch.randn(5, 40, generator=draws, dtype=torch.float64).requires_grad_()
    toward = torch.randn(5, 40, generator=draws, dtype=torch.float64)
    step = (grids.lsq_step(x, grid, per_row) * 0.5).requires_grad_()  # small: much is clipped
    (grids.round_to_grid(x, step, grid) * toward).sum().backward()
    h = 1e-6
    with torch.no_grad():
        moved = [surrogate(x, step + sign * h, grid, step) for sign in (1, -1)]
        slope = ((moved[0] - moved[1]) / (2 * h) * toward).sum_to_size(step.shape)
        inside = grid.inside(x / step)
    assert 0 < inside.sum() < inside.numel()  # both sides of the clip range are tested
    assert torch.equal(x.grad, toward * inside)
    # the surrogate is linear in the step: only fp64's rounding of the difference quotient is left
    torch.testing.assert_close(step.grad, slope, rtol=1e-7, atol=1e-7)


def test_lsq_slopes_are_those_of_the_paper() -> None:
    x = torch.tensor([-20.0, 0.3, 0.7, 20.0], dtype=torch.float64)
    slopes = []
    for value in x:
        step = torch.ones(1, dtype=torch.float64, requires_grad=True)
        grids.round_to_grid(value, step, GRIDS["signed4"]).sum().backward()
        slopes.append(float(step.grad))
    assert slopes == pytest.approx([-8, -0.3, 0.3, 7])


def test_first_step_and_gradient_scale_are_lsq() -> None:
    grid = GRIDS["signed4"]
    x = torch.tensor([[1.0, -3.0], [2.0, 2.0]])
    assert float(grids.lsq_step(x, grid, False)) == pytest.approx(2 * 2.0 / 7**0.5)
    assert grids.lsq_step(x, grid, True).shape == (2, 1)
    step = torch.ones(1, requires_grad=True)
    grids.learned_step(step, 100, grid).backward()
    assert float(step.grad) == pytest.approx(1 / (100 * 7) ** 0.5)


def test_a_learned_step_stays_positive_and_can_come_back() -> None:
    step = torch.tensor([-0.5], requires_grad=True)
    used = grids.learned_step(step, 1, GRIDS["signed4"])
    assert used.item() > 0
    used.backward()
    assert float(step.grad) > 0


def test_straight_through_keeps_every_bit() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    values = torch.tensor([-0.0, 1e-30, 1e30])
    through = grids.straight_through(x, values, torch.tensor([True, False, True]))
    assert torch.equal(through.detach().view(torch.int32), values.view(torch.int32))
    through.sum().backward()
    assert x.grad.tolist() == [1, 0, 1]


@pytest.mark.parametrize("bits", [-1, 0, 1, 17])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(FormatError, match="2 to 16 bits"):
        grids.IntegerGrid.signed(bits)
