"""AutoRound (SignRound, arXiv 2309.05516): learn which way each weight of a block is rounded.

    W^ = s (clip(round(W / s + z + V), 0, n) - z),    n = 2^b - 1        (eq. 3)

V in [-1/2, 1/2] decides the rounding; s and z come from the range of each group, its ends shrunk by
alpha and beta in (0, 1] (eq. 4). All three are trained on the error of the block's output by the
sign of their gradients (eq. 5), rounding counting as the identity (straight through). With steps of
1 / iterations that shrink to 0, V travels about 1/2 in all: any rounding can flip, none by two.

Departure: the authors compare with the output of the original block on the original inputs, this
with its output on the inputs that the compressed blocks before give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo.compress.base import Needs, TrainableBlock
from octavo.compress.facts import Facts
from octavo.core.errors import ConfigError, FormatError
from octavo.formats.floats import round_float, to_storage
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import resolve_convention
from octavo.formats.rtn import encode
from octavo.spec.decoder import Role

_LEAST = 0.05  # of a range is kept


@dataclass(frozen=True, slots=True)
class AutoRound:
    """Encoder of whole blocks; ints with one-level scales, symmetric or with zero points.

    iterations  steps; each sees `batch` sequences, drawn anew.
    rate        of the first step, in units of a rounding step; None: 1 / iterations.
    ranges      alpha and beta are learned as well.

    What is kept gave the least error in its batch; a block that rounding to nearest serves better
    on all sequences keeps that.
    """

    needs: ClassVar[Needs] = Needs.NOTHING
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="learned", format="int4_g64",
        source="arXiv 2309.05516", synonyms=("signround", "learned rounding", "signsgd"),
    )  # fmt: skip

    iterations: int = 200
    batch: int = 8
    rate: float | None = None
    ranges: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.batch < 1 or (self.rate is not None and self.rate <= 0):
            raise ConfigError(
                "autoround: iterations must be at least 0, batch at least 1 and rate positive"
            )

    def encode_block(
        self,
        block: TrainableBlock,
        targets: Mapping[Role, NumberFormat],
        masks: Mapping[Role, Tensor],
    ) -> Mapping[Role, QuantizedTensor]:
        learned = {
            role: Rounding(block.weight(role), target, masks.get(role))
            for role, target in targets.items()
        }
        wanted = [block.output(block.inputs(n), {}) for n in range(block.sequences)]
        nearest = {role: each.state() for role, each in learned.items()}
        least = error(block, learned, wanted)
        self.train(block, learned, wanted)
        if not error(block, learned, wanted) < least:
            for role, each in learned.items():
                each.restore(nearest[role])
        return {role: each.tensor() for role, each in learned.items()}

    def train(
        self, block: TrainableBlock, learned: Mapping[Role, Rounding], wanted: list[Tensor]
    ) -> None:
        """SignSGD; leaves each rounding as it was in the batch of least error."""
        random = torch.Generator().manual_seed(self.seed)
        rate = self.rate or 1 / max(1, self.iterations)
        best, least = {role: each.state() for role, each in learned.items()}, torch.inf
        for step in range(self.iterations):
            chosen = torch.randperm(block.sequences, generator=random)[: self.batch].tolist()
            now = {role: each.state() for role, each in learned.items()}
            loss = self.gradients(block, learned, wanted, chosen)
            if loss < least:
                best, least = now, loss
            for each in learned.values():
                each.step(rate * (1 - step / self.iterations), self.ranges)
        for role, each in learned.items():
            each.restore(best[role])

    def gradients(
        self,
        block: TrainableBlock,
        learned: Mapping[Role, Rounding],
        wanted: list[Tensor],
        chosen: list[int],
    ) -> float:
        """The mean squared error over sequences `chosen`; fills in the gradients."""
        rounded = {role: each.values() for role, each in learned.items()}
        leaves = {role: Q.detach().requires_grad_() for role, Q in rounded.items()}
        total = 0.0
        for n in chosen:
            loss = (block.output(block.inputs(n), leaves) - wanted[n]).square().mean()
            (loss / len(chosen)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / len(chosen)
        for role, Q in rounded.items():
            Q.backward(leaves[role].grad)  # type: ignore[no-untyped-call]
        return total


class Rounding:
    """V, alpha and beta of one weight [out, in], in groups [rows, groups, n]."""

    def __init__(self, W: Tensor, target: NumberFormat, mask: Tensor | None) -> None:
        plain = target.kind == "int" and not target.variant and target.zero != "real"
        if not plain or target.super_scale or target.scale == "e4m3":
            raise FormatError(
                f"autoround learns integers with one-level scales (int4_g64, int4_g64_asym), not "
                f"{target}"
            )
        self._start = encode(W.contiguous().numpy(), target)
        self._format, self._shape, self._mask = target, W.shape, mask
        self._W = W.reshape(target.groups((W.shape[0], W.shape[1])))
        self._top = 2.0**target.bits - 1
        absmax = target.zero == "none" and resolve_convention(target, None) == "absmax"
        self._low = 1.0 if absmax else 0.0
        self._s0 = torch.from_numpy(self._start.steps())[..., None]
        self._z0 = self._zeros()
        self.V = torch.zeros_like(self._W, requires_grad=True)
        self.alpha = torch.ones_like(self._s0, requires_grad=True)
        self.beta = torch.ones_like(self._s0, requires_grad=True)

    def values(self) -> Tensor:
        """W^ [out, in], differentiable."""
        s, z, q = self._rounded()
        Q = (s * (q - z)).reshape(self._shape)
        return Q if self._mask is None else Q * self._mask

    def step(self, rate: float, ranges: bool) -> None:
        """One step against the sign of the gradients."""
        with torch.no_grad():
            for x, low, high in self._learned() if ranges else self._learned()[:1]:
                assert x.grad is not None
                x.sub_(rate * x.grad.sign()).clamp_(low, high)
                x.grad = None
            self.alpha.grad = self.beta.grad = None

    def state(self) -> tuple[Tensor, ...]:
        return tuple(x.detach().clone() for x, _, _ in self._learned())

    def restore(self, state: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            for (x, _, _), value in zip(self._learned(), state, strict=True):
                x.copy_(value)

    def tensor(self) -> QuantizedTensor:
        """What is stored, its values those of `values` bit for bit."""
        with torch.no_grad():
            s, z, q = self._rounded()
        if self._mask is not None:
            q = q.where(self._mask.reshape(q.shape), z)
        codes = pack_bits(q.reshape(self._shape).numpy().astype(np.uint8), self._format.bits)
        scales = to_storage(s[..., 0].numpy(), self._format.scale)
        zeros = self._start.zeros
        if zeros is not None:
            zeros = z[..., 0].numpy().astype(np.uint8)
        return replace(self._start, codes=codes, scales=scales, zeros=zeros)

    def _rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """s, z and codes. The range is beta * lo to alpha * hi; with alpha = beta = 1 and V = 0
        they are those of rounding to nearest, bit for bit."""
        n, z0 = self._top, self._z0
        if self._format.zero == "int":
            width = (self.alpha * (n - z0) + self.beta * z0) / n
            z = through(self.beta * z0 / width, (self.beta * z0 / width).round().clamp(0, n))
        else:
            width, z = self.alpha, z0
        s = self._s0 * width
        s = through(s, round_float(s.detach(), self._format.scale, torch))
        ratio = (self._W / s).masked_fill(s == 0, 0.0) + self.V
        # Rounding first and adding z after: the order of formats/rounding.py.
        q = (through(ratio, ratio.round()) + z).clamp(self._low, n)
        return s, z, q

    def _zeros(self) -> Tensor:
        if self._start.zeros is None:
            return torch.full_like(self._s0, 2.0 ** (self._format.bits - 1))
        return torch.from_numpy(self._start.zeros.astype(np.float32))[..., None]

    def _learned(self) -> tuple[tuple[Tensor, float, float], ...]:
        """What is trained, and its bounds; a symmetric range has one end."""
        found = (self.V, -0.5, 0.5), (self.alpha, _LEAST, 1.0)
        return (*found, (self.beta, _LEAST, 1.0)) if self._format.zero == "int" else found


def through(x: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, to the last bit, whose gradient is that of x."""
    return rounded.detach() + (x - x.detach())


def error(block: TrainableBlock, learned: Mapping[Role, Rounding], wanted: list[Tensor]) -> float:
    """Mean squared error of the block's output over all sequences."""
    with torch.no_grad():
        rounded = {role: each.values() for role, each in learned.items()}
        gaps = (
            (block.output(block.inputs(n), rounded) - y).square().mean()
            for n, y in enumerate(wanted)
        )
        return sum(float(gap) for gap in gaps)
