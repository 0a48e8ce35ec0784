"""HQQ, half-quadratic quantization (Badri and Shaji, Mobius Labs, November 2023; no arXiv id).

Chooses the offset of each group without data: min_m phi(W - (s q + m)), phi being the l_p norm with
p < 1, which lets a few large errors stand so that the many become small. Half-quadratic splitting
adds a stand-in W_e for the error, min phi(W_e) + beta / 2 ||W_e - (W - W_r)||^2, and solves for W_e
and the offset in turns. The authors write W_r = (q - z) / S; here m = -z / S and s = 1 / S, which
stays that of minimum and maximum. Departure: errors are shrunk in units of s. In the weights' own
units the threshold |x|^(p-1) / beta exceeds every error of weights as small as a language model's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.core.errors import ConfigError, FormatError
from octavo.formats.floats import round_float, to_storage
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rtn import encode


@dataclass(frozen=True, slots=True)
class Hqq:
    """Encoder of integers with real offsets and one-level scales (int4_g64_offset); no data.

    Of all offsets met on the way, the first of which is that of rounding to nearest, each group
    keeps the one of least l_p error, measured with the offset as stored.
    """

    needs: ClassVar[Needs] = Needs.NOTHING
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="solved", format="int4_g64_offset",
        source="Mobius Labs, November 2023",
        synonyms=("half-quadratic quantization", "half quadratic"),
    )  # fmt: skip

    p: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 20

    def __post_init__(self) -> None:
        if not (0 < self.p <= 1 and self.beta > 0 and self.kappa >= 1 and self.iterations >= 0):
            raise ConfigError(
                "hqq: p must be in (0, 1], beta positive, kappa at least 1, iterations at least 0"
            )

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        if target.zero != "real" or target.super_scale:
            raise FormatError(f"hqq needs a real offset per group (int4_g64_offset), not {target}")
        if mask is not None and not mask.all():
            raise FormatError(f"{target} can't store exact zeros: pruned weights need a zero")
        start = encode(weight.contiguous().numpy(), target)
        offsets = start.offsets()
        assert offsets is not None
        s, m = (torch.from_numpy(x)[..., None] for x in (start.steps(), offsets))
        W = weight.reshape(target.groups((weight.shape[0], weight.shape[1])))
        m = self.solve(W, s, m, target)
        q = codes(W, s, m, target.bits).reshape(weight.shape).numpy().astype(np.uint8)
        zeros = to_storage(m[..., 0].numpy(), target.scale)
        return replace(start, codes=pack_bits(q, target.bits), zeros=zeros)

    def solve(self, W: Tensor, s: Tensor, m: Tensor, target: NumberFormat) -> Tensor:
        """The best offsets m [rows, groups, 1] for W [rows, groups, n] and steps s."""
        best, least, beta = m, self.phi(W, s, m, target.bits), self.beta
        unit = s.masked_fill(s == 0, 1.0)
        for _ in range(self.iterations):
            q = codes(W, s, m, target.bits)
            W_e = unit * self.shrink((W - (s * q + m)) / unit, beta)
            m = (W - W_e - s * q).mean(-1, keepdim=True)
            stored = round_float(m, target.scale, torch)
            error = self.phi(W, s, stored, target.bits)
            best, least = stored.where(error < least, best), error.minimum(least)
            beta *= self.kappa
        return best

    def shrink(self, x: Tensor, beta: float) -> Tensor:
        """argmin over W_e (generalized soft threshold)."""
        return x.sign() * (x.abs() - x.abs() ** (self.p - 1) / beta).relu()

    def phi(self, W: Tensor, s: Tensor, m: Tensor, bits: int) -> Tensor:
        """sum |W - W_r|^p of each group."""
        return ((W - (s * codes(W, s, m, bits) + m)).abs() ** self.p).sum(-1, keepdim=True)


def codes(W: Tensor, s: Tensor, m: Tensor, bits: int) -> Tensor:
    """The nearest codes (formats/rounding.py, step 4)."""
    return ((W - m) / s).masked_fill(s == 0, 0.0).round().clamp(0, 2**bits - 1)
