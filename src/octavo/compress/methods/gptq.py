"""GPTQ (arXiv 2210.17323): round column by column, and let later columns make up for the error.

For a layer's inputs X the error of weights Q is tr((W - Q) H (W - Q)^T), H = 2 X^T X (eq. 1). OBQ's
step (eqs. 2 and 3) rounds one column and moves the others against its error along a row of H^-1.
Taken in one order for every row, all rows of H^-1 that will be used are those of U, the Cholesky
factor of H^-1 = U^T U (section 3.3, step 3); columns beyond a block are updated once for all of it
(step 2, eqs. 4 and 5), and those beyond two blocks once for both, up to halves of the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, eye
from torch.linalg import cholesky_ex, solve_triangular

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.compress.methods.grid import Grid
from octavo.core.errors import ConfigError, FormatError, NumericsError
from octavo.formats.granularity import PerGroup
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rounding import Convention

_SUBSTITUTED = 256  # rows of a triangle up to which its inverse is found by substitution


@dataclass(frozen=True, slots=True)
class Gptq:
    """Encoder of ints (symmetric, with zero points or offsets), ternary and nf4.

    damp            added to H's diagonal, as a share of its mean; when the factor still fails, it
                    grows by damp_increment, up to 1.
    block           columns that are updated one by one; errors move on to others by blocks, pairs
                    of blocks, and so on: speed only.
    order           "activation": columns of large H_ii first, while all others can make up.
    static_groups   scales of groups come from W before any update. Otherwise each is chosen from
                    the updated weights when its first column is due, which needs order="given": a
                    kernel that finds a column's scale by its place wants groups of neighbours.
    sequential      within a block, q, k and v are encoded before o's inputs are gathered, then o,
                    then gate and up, then down (the authors' --true-sequential).
    """

    needs: ClassVar[Needs] = Needs.HESSIAN
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="heuristic", format="int4_g64",
        source="arXiv 2210.17323",
        synonyms=("obq", "optimal brain quantization", "second order", "hessian"),
    )  # fmt: skip

    damp: float = 0.01
    block: int = 16
    order: Literal["given", "activation"] = "activation"
    static_groups: bool = True
    damp_increment: float = 0.01
    sequential: bool = True
    convention: Convention | None = None

    def __post_init__(self) -> None:
        if self.order not in ("given", "activation"):
            raise ConfigError(f"gptq: order is {self.order!r}; it must be given or activation")
        if self.order == "activation" and not self.static_groups:
            raise ConfigError("gptq: order=activation needs static_groups=true (or order=given)")
        if not (self.damp >= 0 and self.damp_increment > 0 and self.block >= 1):
            raise ConfigError("gptq: damp must be >= 0, damp_increment > 0 and block >= 1")

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        assert stats.hessian is not None
        self._check(target)
        H = stats.hessian.clone()
        dead = H.diagonal() == 0
        H.diagonal()[dead] = mean_of(H.diagonal()[~dead])  # any positive number, but damp's size
        W = weight.masked_fill(dead, 0.0)
        grid = Grid(W if mask is None else W * mask, target, self.convention)
        perm = H.diagonal().argsort(descending=True, stable=True)
        if self.order == "given":
            perm = perm.sort().values
        H = H[perm][:, perm]
        U = self.factor(H, stats.tokens)
        kept = None if mask is None else mask[:, perm]
        codes, _, losses = self.quantize(W[:, perm], U, grid, perm, kept)
        if not losses.isfinite().all():
            raise NumericsError(f"gptq: updates overflow with damp {self.damp:g}; raise damp")
        return grid.tensor(codes[:, perm.argsort()])

    def quantize(
        self, W: Tensor, U: Tensor, grid: Grid, perm: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1 on columns `perm`: codes, Q and losses, [out, in]; the losses of eq. 2 sum to
        half of tr((W - Q) H (W - Q)^T)."""
        pass_ = _Pass(W, U, grid, perm, mask, self._refits(grid))
        block = whole_groups(self.block, grid.group) if pass_.refits else self.block
        pass_.run(0, len(pass_.W), block)
        return pass_.codes.T, pass_.Q.T, (pass_.Err**2 / 2).T

    def _refits(self, grid: Grid) -> bool:
        return not self.static_groups and isinstance(grid.format.granularity, PerGroup)

    def factor(self, H: Tensor, tokens: int) -> Tensor:
        """U, upper triangular, with (H + damp * mean(diag H) * I)^-1 = U^T U.

        From the last input to the first, H's own factor is L with H = L L^T; from the first to the
        last, L^-1 is U. That is one factor and one inverse of a triangle, instead of the authors'
        inverse of H and two factors.
        """
        mean, damp = H.diagonal().mean(), self.damp
        while mean.isfinite() and damp <= max(1.0, self.damp):
            damped = H.flip(0, 1)  # a copy, and the only one: squares are most of GPTQ's memory
            damped.diagonal().add_(damp * mean)
            L, failed = cholesky_ex(damped)
            del damped
            if not failed:
                U = inverse(L).flip(0, 1)
                if U.isfinite().all():
                    return U
            damp += self.damp_increment
        raise NumericsError(
            f"gptq: no Cholesky factor of a {len(H)} x {len(H)} Hessian of {tokens} tokens, tried "
            f"damp {self.damp:g} to {max(1.0, self.damp):g}; use more calibration data"
        )

    def _check(self, target: NumberFormat) -> None:
        if self.static_groups or not isinstance(target.granularity, PerGroup):
            return
        if target.super_scale or target.scale == "e4m3":
            raise FormatError(
                f"{target} shares scales across groups: gptq needs static_groups=true"
            )


class _Pass:
    """Algorithm 1 under way, columns as rows: what is rounded together lies side by side."""

    def __init__(
        self,
        W: Tensor,
        U: Tensor,
        grid: Grid,
        perm: Tensor,
        mask: Tensor | None,
        refits: bool,
    ) -> None:
        self.W = W.T.clone(memory_format=torch.contiguous_format)
        self.codes, self.Q, self.Err = (torch.empty_like(self.W) for _ in range(3))
        self.refits = refits
        self._U, self._grid = U, grid
        self._mask = None if mask is None else mask.T.contiguous()
        self._group_of = (perm // grid.group).tolist()

    def run(self, i1: int, i2: int, block: int) -> None:
        """Columns i1 to i2. Halves of whole blocks: the errors of the first go into the second at
        once (eq. 4), so that nearly all updates are products of matrices."""
        if i2 - i1 <= block:
            for i in range(i1, i2):
                self._column(i, i2)
            return
        middle = i1 + -(-(i2 - i1) // (2 * block)) * block
        self.run(i1, middle, block)
        self.W[middle:i2].addmm_(self._U[i1:middle, middle:i2].T, self.Err[i1:middle], alpha=-1)
        self.run(middle, i2, block)

    def _column(self, i: int, i2: int) -> None:
        """Round column i, and move the others of its block (eqs. 2 and 3)."""
        group, w = self._group_of[i], self.W[i]
        if self.refits and i % self._grid.group == 0:
            self._grid.refit(group, self.W[i : i + self._grid.group].T)
        code, q = self._grid.nearest(w, group)
        if self._mask is not None:
            zero_code, zero = self._grid.zeros(group)
            code, q = code.where(self._mask[i], zero_code), q.where(self._mask[i], zero)
        self.codes[i], self.Q[i] = code, q
        err = torch.sub(w, q, out=self.Err[i]).div_(self._U[i, i])
        self.W[i + 1 : i2].addr_(self._U[i, i + 1 : i2], err, alpha=-1)


def inverse(L: Tensor) -> Tensor:
    """Of a lower triangle, by halves: products instead of substitution. What is above the diagonal
    is not read."""
    n = len(L)
    if n <= _SUBSTITUTED:
        found: Tensor = solve_triangular(L, eye(n, dtype=L.dtype), upper=False)
        return found
    h = n // 2
    out = L.new_zeros(n, n)
    out[:h, :h], out[h:, h:] = inverse(L[:h, :h]), inverse(L[h:, h:])
    torch.mm(out[h:, h:], L[h:, :h] @ out[:h, :h], out=out[h:, :h])
    out[h:, :h].neg_()
    return out


def mean_of(x: Tensor) -> float:
    """The mean, or 1 of nothing."""
    return float(x.mean()) if len(x) else 1.0


def whole_groups(block: int, group: int) -> int:
    """The block size nearest to `block` from below, but at least one group, that splits none."""
    return max(group, block // group * group)
