"""GPTQ (arXiv 2210.17323): round column by column, and let later columns make up for the error.

For a layer's inputs X the error of weights Q is tr((W - Q) H (W - Q)^T), H = 2 X^T X (eq. 1). OBQ's
step (eqs. 2 and 3) rounds one column and moves the others against its error along a row of H^-1.
Taken in one order for every row, all rows of H^-1 that will be used are those of U, the Cholesky
factor of H^-1 = U^T U (section 3.3, step 3); columns beyond a block are updated once for all of it
(step 2, eqs. 4 and 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

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


@dataclass(frozen=True, slots=True)
class Gptq:
    """Encoder of ints (symmetric, with zero points or offsets), ternary and nf4.

    damp            added to H's diagonal, as a share of its mean; when the factor still fails, it
                    grows by damp_increment, up to 1.
    block           columns whose updates are gathered: speed only.
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
    block: int = 128
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
        U = self.factor(H[perm][:, perm], stats.tokens)
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
        W = W.clone()
        codes, Q, losses = W.new_empty(W.shape), W.new_empty(W.shape), W.new_empty(W.shape)
        refits = not self.static_groups and isinstance(grid.format.granularity, PerGroup)
        block = whole_groups(self.block, grid.group) if refits else self.block
        group_of = (perm // grid.group).tolist()
        for i1 in range(0, W.shape[1], block):
            i2 = min(i1 + block, W.shape[1])
            Err = W.new_zeros(W.shape[0], i2 - i1)
            for i in range(i1, i2):
                group = group_of[i]
                if refits and i % grid.group == 0:
                    grid.refit(group, W[:, i : i + grid.group])
                w, d = W[:, i], U[i, i]
                codes[:, i], Q[:, i] = grid.nearest(w, group)
                if mask is not None:
                    code, zero = grid.zeros(group)
                    codes[:, i] = codes[:, i].where(mask[:, i], code)
                    Q[:, i] = Q[:, i].where(mask[:, i], zero)
                err = (w - Q[:, i]) / d
                losses[:, i] = err**2 / 2
                W[:, i:i2] -= err.outer(U[i, i:i2])
                Err[:, i - i1] = err
            W[:, i2:] -= Err @ U[i1:i2, i2:]
        return codes, Q, losses

    def factor(self, H: Tensor, tokens: int) -> Tensor:
        """U, upper triangular, with (H + damp * mean(diag H) * I)^-1 = U^T U.

        From the last input to the first, H's own factor is L with H = L L^T; from the first to the
        last, L^-1 is U. That is one factor and one inverse of a triangle, instead of the authors'
        inverse of H and two factors.
        """
        mean, damp = H.diagonal().mean(), self.damp
        while mean.isfinite() and damp <= max(1.0, self.damp):
            damped = H.clone()
            damped.diagonal().add_(damp * mean)
            L, failed = cholesky_ex(damped.flip(0, 1))
            if not failed:
                U: Tensor = solve_triangular(L, eye(len(H), dtype=H.dtype), upper=False).flip(0, 1)
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


def mean_of(x: Tensor) -> float:
    """The mean, or 1 of nothing."""
    return float(x.mean()) if len(x) else 1.0


def whole_groups(block: int, group: int) -> int:
    """The block size nearest to `block` from below, but at least one group, that splits none."""
    return max(group, block // group * group)
