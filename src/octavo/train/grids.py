"""Rounding to a grid whose step may be learned, differentiable by the straight-through estimator.

Levels are `step * u`, u a fixed set of units. Backward, where x lies inside the clip range: dx is
the identity, and d(step) is `u - x / step`, as if rounding added a constant (LSQ, arXiv
1902.08153). Outside, dx is zero and d(step) is the last unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.core.errors import FormatError

_SMALLEST_STEP = 1e-8
_STRETCH_EDGE = 0.99  # just inside the cell of the last level, so that rounding can't leave it


class Grid(Protocol):
    """Units of a grid; `ratio` is x / step, of any shape."""

    @property
    def top(self) -> float:
        """The largest unit."""

    def units(self, ratio: Tensor) -> Tensor:
        """The unit that each ratio is rounded to."""

    def inside(self, ratio: Tensor) -> Tensor:
        """bool: where the ratio is not clipped."""


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """Units low .. high, half to even. Ratios up to `edge` beyond them count as inside."""

    low: int
    high: int
    edge: float = 0.0

    @classmethod
    def symmetric(cls, num_bits: int) -> IntegerGrid:
        """-(2^(b-1) - 1) .. 2^(b-1) - 1."""
        last = 2 ** (_checked_bits(num_bits) - 1) - 1
        return cls(-last, last)

    @classmethod
    def signed(cls, num_bits: int) -> IntegerGrid:
        """-2^(b-1) .. 2^(b-1) - 1."""
        half = 2 ** (_checked_bits(num_bits) - 1)
        return cls(-half, half - 1)

    @property
    def top(self) -> float:
        return float(self.high)

    def units(self, ratio: Tensor) -> Tensor:
        # the sum turns -0 into +0, as subtracting a stored zero point does
        return torch.clamp(torch.round(ratio), self.low, self.high) + 0.0

    def inside(self, ratio: Tensor) -> Tensor:
        return (ratio >= self.low - self.edge) & (ratio <= self.high + self.edge)


@dataclass(frozen=True, slots=True)
class StretchedGrid:
    """ParetoQ's stretched elastic grid (arXiv 2502.02631): levels in the middles of equal cells.

    `cells` levels over [-1, 1]: four are -3/4, -1/4, 1/4, 3/4 (no zero, no lost half step as in
    -2 .. 1); three are -2/3, 0, 2/3. u = (rint(clamp(x, +-0.99) * n - shift) + shift) / n with
    n = cells / 2; the shift of an even number of cells is 1/2.
    """

    cells: int

    @property
    def top(self) -> float:
        return (self.cells - 1) / self.cells

    def units(self, ratio: Tensor) -> Tensor:
        n, shift = self.cells / 2, 0.0 if self.cells % 2 else 0.5
        held = torch.clamp(ratio, -_STRETCH_EDGE, _STRETCH_EDGE)
        return (torch.round(held * n - shift) + shift) / n

    def inside(self, ratio: Tensor) -> Tensor:
        return ratio.abs() <= _STRETCH_EDGE


def round_to_grid(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """`step * units(x / step)`; `step` is positive and broadcasts against x.

    Gradients reach x and, where it requires one, step.
    """
    return _on_grid(x, step, grid)


def straight_through(x: Tensor, values: Tensor, inside: Tensor | None = None) -> Tensor:
    """`values` forward, to the last bit; backward the gradient of x where `inside` (arXiv
    1308.3432; None: everywhere)."""
    return _through(x, values, inside)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x forward, `factor` times its gradient backward."""
    return _scaled_gradient(x, factor)


def lsq_step(x: Tensor, grid: Grid, per_row: bool) -> Tensor:
    """LSQ's first step, 2 * mean |x| / sqrt(Q_P), of the tensor [1] or of every row [rows, 1]."""
    size = x.detach().abs()
    mean = size.mean(dim=-1, keepdim=True) if per_row else size.mean().reshape(1)
    return torch.clamp(2 * mean / math.sqrt(grid.top), min=_SMALLEST_STEP)


def learned_step(step: Tensor, shared_by: int, grid: Grid) -> Tensor:
    """A step parameter as it is used: positive, its gradient times 1 / sqrt(N * Q_P).

    shared_by  N, the number of values that share one step.
    """
    positive = straight_through(step, step.detach().clamp(min=_SMALLEST_STEP))
    return scale_gradient(positive, 1 / math.sqrt(shared_by * grid.top))


def _checked_bits(num_bits: int) -> int:
    if not 2 <= num_bits <= 16:
        raise FormatError(f"num_bits is {num_bits}: fake quantization has 2 to 16 bits")
    return num_bits


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, grid: Grid) -> Tensor:
        ratio = x / step
        units, inside = grid.units(ratio), grid.inside(ratio)
        ctx.save_for_backward(ratio, units, inside)
        ctx.step_shape = step.shape
        return units * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        ratio, units, inside = ctx.saved_tensors
        (grad,) = grads
        step_grad = None
        if ctx.needs_input_grad[1]:
            slope = units - torch.where(inside, ratio, torch.zeros_like(ratio))
            step_grad = (grad * slope).sum_to_size(ctx.step_shape)
        return grad * inside, step_grad, None


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, inside: Tensor | None) -> Tensor:
        del x  # only its gradient matters
        ctx.save_for_backward(*(() if inside is None else (inside,)))
        return values.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return (grad * ctx.saved_tensors[0] if ctx.saved_tensors else grad), None, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


# torch's `apply` has no types of its own
_on_grid: Callable[[Tensor, Tensor, Grid], Tensor] = _OnGrid.apply
_through: Callable[[Tensor, Tensor, Tensor | None], Tensor] = _Through.apply
_scaled_gradient: Callable[[Tensor, float], Tensor] = _ScaledGradient.apply
