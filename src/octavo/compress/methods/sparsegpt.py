"""SparseGPT (arXiv 2301.00774): prune column by column, and let later columns make up for it.

Taking column j out of a row costs W_j^2 / [H^-1]_jj (eq. 3) when all columns after it move by the
optimal brain surgeon's update. As in GPTQ all rows share one order, so all that is needed of H^-1
stands in U, the Cholesky factor of H^-1 = U^T U, with [H^-1]_jj = U_jj^2 among columns from j on
(section 3.2). The mask is chosen block by block, on weights that earlier columns have moved
(section 3.3, "adaptive"), and what stays is rounded in the same pass (section 3.5, eq. 7): the
error of both goes into the columns that are still to come (algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.compress.methods.gptq import Gptq, mean_of, whole_groups
from octavo.compress.methods.grid import Grid
from octavo.compress.methods.patterns import Pattern
from octavo.core.errors import ConfigError, NumericsError
from octavo.formats.granularity import PerGroup
from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import Convention
from octavo.formats.rtn import encode


@dataclass(frozen=True, slots=True)
class SparseGpt:
    """Encoder of ints, ternary and nf4, and of plain floats: then it prunes, and rounds to them.

    sparsity       share of the weights of each block that go (an n:m pattern's name says it).
    pattern        "" (any weight), "2:4", "16x32": see patterns.py.
    damp           added to H's diagonal, as a share of its mean (more when its factor fails).
    block          columns of which all rows compete; updates of later ones are gathered for it.
    static_groups  scales of groups come from a first pass that only prunes, not from the weights
                   as they are when the group's first column is due.

    With a mask given, that one is taken.
    """

    needs: ClassVar[Needs] = Needs.HESSIAN
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="heuristic",
        format="int4_g64", source="arXiv 2301.00774",
        synonyms=("pruning", "sparsity", "second order"),
    )  # fmt: skip
    prunes: ClassVar[bool] = True

    sparsity: float = 0.5
    pattern: str = ""
    damp: float = 0.01
    block: int = 128
    static_groups: bool = True
    convention: Convention | None = None

    def __post_init__(self) -> None:
        Pattern(self.pattern, self.sparsity)
        if not (self.damp >= 0 and self.block >= 1):
            raise ConfigError("sparsegpt: damp must be >= 0 and block >= 1")

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        assert stats.hessian is not None
        Pattern(self.pattern, self.sparsity).check(weight.shape[0], weight.shape[1])
        H = stats.hessian.clone()
        dead = H.diagonal() == 0
        H.diagonal()[dead] = mean_of(H.diagonal()[~dead])  # any positive number, but damp's size
        U = Gptq(damp=self.damp).factor(H, stats.tokens)
        rounding: Grid | Plain = Plain(target)
        if not target.plain:
            # Columns that make up for others grow beyond a grid that fits W.
            moved = self.prune(weight, U, Plain(FP32), dead, mask)[1]
            rounding = Grid(moved, target, self.convention)
        codes, Q, _ = self.prune(weight, U, rounding, dead, mask)
        if not Q.isfinite().all():
            raise NumericsError(f"sparsegpt: updates overflow with damp {self.damp:g}; raise damp")
        if isinstance(rounding, Plain):
            return encode(Q.numpy(), target)
        return rounding.tensor(codes)

    def prune(
        self,
        W: Tensor,
        U: Tensor,
        rounding: Grid | Plain,
        dead: Tensor,
        given: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1: codes, Q and mask, [out, in]. `dead` inputs are always 0: their weights cost
        nothing."""
        W, columns = W.clone(), W.shape[1]
        codes, Q = W.new_zeros(W.shape), W.new_zeros(W.shape)
        M = torch.ones_like(W, dtype=torch.bool) if given is None else given
        pattern = Pattern(self.pattern, self.sparsity)
        cost = U.diagonal().reciprocal().masked_fill(dead, 0.0)
        B = whole_groups(self.block, pattern.width)
        for i1 in range(0, columns, B):
            i2 = min(i1 + B, columns)
            E = W.new_zeros(W.shape[0], i2 - i1)
            for j in range(i1, i2):
                if given is None and (j - i1) % self._due(pattern, B) == 0:
                    s = slice(j, min(j + self._due(pattern, B), i2))
                    M[:, s] = pattern.mask((W[:, s] * cost[s]).square(), "tensor")
                codes[:, j], Q[:, j] = self._rounded(W, j, M, rounding)
                E[:, j - i1] = (W[:, j] - Q[:, j]) / U[j, j]
                W[:, j:i2] -= E[:, j - i1].outer(U[j, j:i2])
            W[:, i2:] -= E @ U[i1:i2, i2:]
        return codes, Q, M

    @staticmethod
    def _due(pattern: Pattern, block: int) -> int:
        """Columns whose mask is chosen at once: a group of an n:m pattern, else the block."""
        return pattern.width if pattern.n_of_m else block

    def _rounded(
        self, W: Tensor, j: int, M: Tensor, rounding: Grid | Plain
    ) -> tuple[Tensor, Tensor]:
        """Codes and values of column j: the nearest where a weight stays, else 0."""
        if isinstance(rounding, Plain):
            q = rounding.nearest(W[:, j])
            return q, q.masked_fill(~M[:, j], 0.0)
        group, first = divmod(j, rounding.group)
        grouped = isinstance(rounding.format.granularity, PerGroup)
        if grouped and not first and not self._static(rounding.format):
            s = slice(j, j + rounding.group)
            rounding.refit(group, W[:, s].masked_fill(~M[:, s], 0.0))
        code, q = rounding.nearest(W[:, j], group)
        zero_code, zero = rounding.zeros(group)
        return code.where(M[:, j], zero_code), q.where(M[:, j], zero)

    def _static(self, target: NumberFormat) -> bool:
        """Whether scales stay: those that groups share can't be chosen one by one."""
        return self.static_groups or target.super_scale is not None or target.scale == "e4m3"


@dataclass(frozen=True, slots=True)
class Plain:
    """Rounding to a plain float."""

    format: NumberFormat

    def nearest(self, w: Tensor) -> Tensor:
        """The values, fp32. Raises FormatError for a weight beyond the format's range."""
        column = np.ascontiguousarray(w.numpy()[:, None])
        return torch.from_numpy(encode(column, self.format).dequantize()[:, 0].copy())
