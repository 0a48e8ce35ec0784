"""Training that begins where an encoder ended: with its codes, steps, zero points and offsets.

    w = step * (q - zero) + offset,  q = round((w - offset) / step) + zero, clipped to b bits

Steps may be learned as factors of the encoder's (LSQ, arXiv 1902.08153); zero points and offsets
stay. A master is the full-precision weight where that rounds to the encoder's code, else the level
that the encoder chose: zero steps of training give the encoding back to the bit, whichever method
made it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.core.errors import FormatError
from octavo.formats.floats import to_storage
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.train.grids import round_to_grid, scale_gradient, straight_through
from octavo.train.learned import SCALES, stored_steps


@dataclass(frozen=True, slots=True)
class ZeroPointGrid:
    """Units low .. high, tensors that broadcast against the groups. A whole cell lies around each
    of them, those at the ends included."""

    low: Tensor
    high: Tensor
    top: float

    def units(self, ratio: Tensor) -> Tensor:
        # the sum turns -0 into +0, as subtracting a stored zero point does
        return torch.clamp(torch.round(ratio), self.low, self.high) + 0.0

    def inside(self, ratio: Tensor) -> Tensor:
        return (ratio >= self.low - 0.5) & (ratio <= self.high + 0.5)


class Anchor:
    """The grid of one encoding. Raises FormatError for a format without linear steps."""

    def __init__(self, tensor: QuantizedTensor, device: str = "cpu") -> None:
        format = tensor.format
        linear = format.kind == "int" and format.variant in ("", "ternary")
        if not linear or format.scale not in SCALES or tensor.super_scales is not None:
            raise FormatError(
                f"{format} has no linear steps in fp16, bf16 or fp32 to start from: encode it with "
                "rtn, which training repeats in every pass, or take an integer format"
            )
        self.tensor = tensor
        self.steps = torch.from_numpy(tensor.steps())[..., None].to(device)
        offsets = tensor.offsets()
        self._offsets = None if offsets is None else _table(offsets, device)
        self._grid = _grid(tensor, device)

    def master(self, weight: Tensor) -> Tensor:
        """float32 [out, in]: `weight` where it rounds to the encoder's code, else that level."""
        levels = torch.from_numpy(self.tensor.dequantize()).to(weight.device)
        return torch.where(self.rounded(weight, None) == levels, weight, levels)

    def rounded(self, weight: Tensor, factors: Tensor | None) -> Tensor:
        """float32 [out, in] with gradients to the weight and, unless None, to the factors of the
        steps [rows, groups, 1]."""
        grouped, used = self._grouped(weight), self._used(factors)
        if self._offsets is None:
            return round_to_grid(grouped, used, self._grid).reshape(weight.shape)
        values = round_to_grid(grouped - self._offsets, used, self._grid) + self._offsets
        return values.reshape(weight.shape)

    def convert(self, weight: Tensor, factors: Tensor | None) -> QuantizedTensor:
        """What is stored and served: `dequantize()` is `rounded`, bit for bit."""
        old, format = self.tensor, self.tensor.format
        grouped, used = self._grouped(weight.detach()), self._used(factors).detach()
        shifted = grouped if self._offsets is None else grouped - self._offsets
        codes = (self._grid.units(shifted / used) - self._lowest()).reshape(weight.shape)
        packed = pack_bits(codes.to(torch.uint8).cpu().numpy(), format.bits)
        scales = old.scales
        if factors is not None:
            scales = to_storage(used[..., 0].cpu().numpy(), format.scale)
        return QuantizedTensor(format, old.shape, packed, scales, old.zeros)

    def _grouped(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.tensor.format.groups(self.tensor.shape))

    def _used(self, factors: Tensor | None) -> Tensor:
        if factors is None:
            return self.steps
        learned = self.steps * factors
        exact = straight_through(learned, stored_steps(learned.detach(), self.tensor.format))
        shared = self.tensor.shape[0] * self.tensor.shape[1] / self.steps.numel()
        return scale_gradient(exact, 1 / math.sqrt(shared * self._grid.top))

    def _lowest(self) -> Tensor | float:
        """The unit of code 0."""
        ternary = self.tensor.format.variant == "ternary"
        return -2.0 if ternary else self._grid.low


def _grid(tensor: QuantizedTensor, device: str) -> ZeroPointGrid:
    codes = int(2**tensor.format.bits)
    if tensor.format.variant == "ternary":
        low, high = -torch.ones(1, device=device), torch.ones(1, device=device)
    else:
        low = -_zeros(tensor, device)
        high = low + (codes - 1)
    return ZeroPointGrid(low, high, (codes - 1) / 2)


def _zeros(tensor: QuantizedTensor, device: str) -> Tensor:
    if tensor.format.zero == "real":
        return torch.zeros(1, device=device)
    if tensor.zeros is None:
        return torch.full((1,), 2.0 ** (tensor.format.bits - 1), device=device)
    return _table(tensor.zeros.astype(np.float32), device)


def _table(values: npt.NDArray[np.float32], device: str) -> Tensor:
    return torch.from_numpy(values)[..., None].to(device)
