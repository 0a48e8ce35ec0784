"""Where zeros may lie, and which weights become zeros: those of least saliency, exactly as many as
asked for. Saliency is squared, so that a block's is the sum over its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from octavo.core.errors import ConfigError, FormatError

Scope = Literal["row", "tensor"]

_N_OF_M = re.compile(r"([1-9][0-9]?):([1-9][0-9]?)")
_BLOCK = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One of three, by its name:

    ""       any weight, `sparsity` of them;
    "n:m"    in every m consecutive inputs of a row the n most salient stay;
    "rxc"    whole blocks of r outputs by c inputs, `sparsity` of them.
    """

    name: str = ""
    sparsity: float = 0.5

    def __post_init__(self) -> None:
        if type(self.sparsity) not in (int, float) or not 0 <= self.sparsity < 1:
            raise ConfigError(f"sparsity is {self.sparsity!r}; it must be from 0 to below 1")
        if not isinstance(self.name, str) or (self.name and not (self.n_of_m or self.block)):
            raise ConfigError(
                f"pattern {self.name!r}: write n:m with n below m (2:4 keeps two of every four), "
                'or rows x columns of a block (16x32), or "" for any weight'
            )

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(kept, of) of an n:m pattern."""
        found = _N_OF_M.fullmatch(self.name)
        n, m = map(int, found.groups()) if found else (0, 0)
        return (n, m) if 0 < n < m else None

    @property
    def block(self) -> tuple[int, int] | None:
        """(outputs, inputs) of a block."""
        found = _BLOCK.fullmatch(self.name)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def width(self) -> int:
        """Inputs that are decided on together."""
        if self.n_of_m:
            return self.n_of_m[1]
        return self.block[1] if self.block else 1

    def mask(self, saliency: Tensor, scope: Scope = "row") -> Tensor:
        """bool [out, in], True where a weight stays; `scope` is what competes: the weights of a
        row, or of all that is given (of blocks: a row of blocks). Of equal ones the first goes.

        Raises FormatError for a shape that the pattern doesn't divide.
        """
        self.check(saliency.shape[0], saliency.shape[1])
        if self.n_of_m:
            n, m = self.n_of_m
            groups = saliency.reshape(-1, m)
            return _all_but_least(groups, m - n).reshape(saliency.shape)
        rows, columns = self.block or (1, 1)
        if rows * columns > 1:
            blocks = saliency.reshape(saliency.shape[0] // rows, rows, -1, columns).sum((1, 3))
            kept = self._kept(blocks, scope)
            return kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return self._kept(saliency, scope)

    def check(self, out: int, width: int) -> None:
        """Raises FormatError for a shape that the pattern doesn't divide."""
        rows, columns = self.block or (1, self.width)
        if width % columns or out % rows:
            raise FormatError(
                f"pattern {self.name} can't take a weight of [{out}, {width}]: it needs multiples "
                f"of {rows} outputs and {columns} inputs; choose one that divides them, or leave "
                "this matrix out"
            )

    def _kept(self, saliency: Tensor, scope: Scope) -> Tensor:
        pools = saliency if scope == "row" else saliency.reshape(1, -1)
        pruned = round(self.sparsity * pools.shape[1])
        return _all_but_least(pools, pruned).reshape(saliency.shape)


def check_scope(scope: object) -> None:
    """Raises ConfigError."""
    if scope not in ("row", "tensor"):
        raise ConfigError(f"scope is {scope!r}; it must be row or tensor")


def _all_but_least(pools: Tensor, pruned: int) -> Tensor:
    """bool: False for the `pruned` smallest of each row, the first of equal ones."""
    order = pools.argsort(dim=1, stable=True)
    mask = torch.ones(pools.shape, dtype=torch.bool)
    return mask.scatter_(1, order[:, :pruned], False)
