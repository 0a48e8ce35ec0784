"""Fake quantization as parts of any `nn.Module`."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.core.errors import ConfigError, FormatError
from octavo.train.grids import (
    Grid,
    IntegerGrid,
    StretchedGrid,
    learned_step,
    lsq_step,
    round_to_grid,
    straight_through,
)

Mode = Literal["absmax", "minmax", "lsq", "seq", "ternary"]
_MODES = ("absmax", "minmax", "lsq", "seq", "ternary")


def fake_quantize(x: Tensor, num_bits: int = 8) -> Tensor:
    """x rounded to `num_bits` and back; its gradient passes unchanged (straight-through).

    scale = max|x| / (2^(b-1) - 1); codes -(2^(b-1) - 1) .. 2^(b-1) - 1, half to even. The largest
    magnitude sets the range, so nothing is clipped. Raises FormatError unless 2 to 16 bits.
    """
    return _absmax(x, num_bits, per_row=False)


class FakeQuantize(nn.Module):
    """Rounds what passes through it, with a straight-through gradient inside the clip range.

    mode "absmax"   scale = max|x| / (2^(b-1) - 1) of this very tensor; nothing is clipped
         "minmax"   scale = (max(x, 0) - min(x, 0)) / (2^b - 1) with an integer zero point
         "lsq"      a learned step, codes -2^(b-1) .. 2^(b-1) - 1 (arXiv 1902.08153)
         "seq"      a learned range, 2^b levels in the middles of equal cells (arXiv 2502.02631)
         "ternary"  the same with three levels; num_bits is 2
    rows            steps along the first axis of [rows, n], one a row; None: one for all. A learned
                    mode starts from the first tensor it sees, at 2 * mean|x| / sqrt(Q_P).
    """

    started: Tensor

    def __init__(self, num_bits: int = 8, mode: Mode = "absmax", rows: int | None = None) -> None:
        super().__init__()
        _check(num_bits, mode, rows)
        self.num_bits, self.mode, self.rows = num_bits, mode, rows
        self.grid = _grid(num_bits, mode)
        self.step: nn.Parameter | None = None
        if mode in ("lsq", "seq", "ternary"):
            self.step = nn.Parameter(torch.ones((1,) if rows is None else (rows, 1)))
            self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        self._check_rows(x)
        if self.step is None:
            return self._from_range(x)
        if not self.started:
            self.start(x)
        shared_by = x.numel() // self.step.numel()
        return round_to_grid(x, learned_step(self.step, shared_by, self.grid), self.grid)

    def start(self, x: Tensor) -> None:
        """Set the learned step from x, as the first forward does."""
        if self.step is None:
            raise ConfigError(f"mode {self.mode!r} has no learned step to start")
        with torch.no_grad():
            self.step.copy_(lsq_step(x, self.grid, self.rows is not None))
            self.started.fill_(True)

    def extra_repr(self) -> str:
        return f"num_bits={self.num_bits}, mode={self.mode!r}, rows={self.rows}"

    def _from_range(self, x: Tensor) -> Tensor:
        per_row = self.rows is not None
        if self.mode == "absmax":
            return _absmax(x, self.num_bits, per_row)
        return _minmax(x, self.num_bits, per_row)

    def _check_rows(self, x: Tensor) -> None:
        if self.rows is not None and (x.ndim != 2 or x.shape[0] != self.rows):
            raise FormatError(
                f"FakeQuantize has steps for {self.rows} rows, and x is {list(x.shape)}: "
                "give [rows, n], or leave rows out for one step"
            )


class QuantizedLinear(nn.Linear):
    """A linear layer that multiplies with its fake-quantized weight; initialized as nn.Linear.

    scale = max|w| / (2^(b-1) - 1), one for the weight. Raises FormatError unless 2 to 16 bits.
    """

    def __init__(
        self, in_features: int, out_features: int, num_bits: int = 8, bias: bool = True
    ) -> None:
        IntegerGrid.symmetric(num_bits)  # refuse before anything is allocated
        super().__init__(in_features, out_features, bias)
        self.num_bits = num_bits

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, fake_quantize(self.weight, self.num_bits), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_bits={self.num_bits}"


def _grid(num_bits: int, mode: Mode) -> Grid:
    if mode == "seq":
        return StretchedGrid(2**num_bits)
    if mode == "ternary":
        return StretchedGrid(3)
    return IntegerGrid.symmetric(num_bits) if mode == "absmax" else IntegerGrid.signed(num_bits)


def _check(num_bits: int, mode: str, rows: int | None) -> None:
    if mode not in _MODES:
        raise ConfigError(f"mode is {mode!r}; give one of {', '.join(_MODES)}")
    IntegerGrid.signed(num_bits)
    if mode == "ternary" and num_bits != 2:
        raise FormatError(f"num_bits is {num_bits}: ternary codes take 2 bits")
    if rows is not None and rows < 1:
        raise ConfigError(f"rows is {rows}; give the first axis of the tensor, or None")


def _absmax(x: Tensor, num_bits: int, per_row: bool) -> Tensor:
    grid, values = IntegerGrid.symmetric(num_bits), x.detach()
    if not values.numel():
        return x
    largest = values.abs().amax(dim=-1, keepdim=True) if per_row else values.abs().amax()
    scale = _positive(largest / grid.high)
    return straight_through(x, grid.units(values / scale) * scale)


def _minmax(x: Tensor, num_bits: int, per_row: bool) -> Tensor:
    values, last = x.detach(), 2**num_bits - 1
    if not values.numel():
        return x
    low, high = (values.amin(-1, True), values.amax(-1, True)) if per_row else values.aminmax()
    scale = _positive((high.clamp(min=0) - low.clamp(max=0)) / last)
    zero = torch.clamp(torch.round(-low.clamp(max=0) / scale), 0, last)
    ratio = values / scale
    codes = torch.clamp(torch.round(ratio) + zero, 0, last)
    inside = (ratio >= -zero) & (ratio <= last - zero)
    return straight_through(x, (codes - zero) * scale, inside)


def _positive(scale: Tensor) -> Tensor:
    # values that are all zero stay zero under any scale
    return torch.where(scale == 0, torch.ones_like(scale), scale)
