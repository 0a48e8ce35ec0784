"""GPTQ on searched scales, then exact line searches under the same Hessian.

For formats that GGUF knows, two-level scales among them. Three steps, all on the objective of GPTQ
(arXiv 2210.17323, eq. 1), tr((W - Q) H (W - Q)^T): scales by `octavo.io.gguf_search`, weighed by
H's diagonal; codes by GPTQ on that fixed grid; then, in turn, sweeps of coordinate descent over the
codes (the optimum of one column given all others is w_j + (E H)_j / H_jj, as in QuantEase, arXiv
2309.01885, eq. 5) and least squares of each row's fp16 scales given its codes. A step is kept where
it lowers a row's objective.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.compress.methods.gptq import Gptq, mean_of
from octavo.compress.methods.grid import Grid
from octavo.core.errors import ConfigError, FormatError
from octavo.formats.gguf_formats import GGUF_FORMATS, gguf_type_of
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.gguf_blocks import quantized
from octavo.io.gguf_search import SHAPES, search


@dataclass(frozen=True, slots=True)
class Searched:
    """Encoder of the formats that GGUF's searched types have (Q4_0 to Q6_K but IQ4_XS).

    sweeps       of coordinate descent, each followed by a fit of the scales; 0 leaves GPTQ's codes
    damp, block  as GPTQ's; block is speed only
    """

    needs: ClassVar[Needs] = Needs.HESSIAN
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="heuristic",
        format="int4_g32_offset_su6x256", source="arXiv 2210.17323, arXiv 2309.01885",
        synonyms=("k-quants", "gguf", "coordinate descent", "quantease"),
    )  # fmt: skip

    sweeps: int = 3
    damp: float = 0.01
    block: int = 16

    def __post_init__(self) -> None:
        if self.sweeps < 0 or self.block < 1 or self.damp < 0:
            raise ConfigError("searched: sweeps and damp must be >= 0, block >= 1")

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        assert stats.hessian is not None
        type_name = gguf_type_of(target)
        if type_name is None or type_name not in SHAPES or mask is not None:
            known = ", ".join(str(GGUF_FORMATS[name]) for name in SHAPES)
            what = f"{target} has no search for its scales" if mask is None else "no mask is kept"
            raise FormatError(f"searched: {what}; it encodes {known}")
        H = stats.hessian.clone()
        dead = H.diagonal() == 0
        H.diagonal()[dead] = mean_of(H.diagonal()[~dead])
        W = weight.masked_fill(dead, 0.0)
        blocks = search(type_name, W.numpy(), H.diagonal().contiguous().numpy())
        grid = StoredGrid(W, quantized(type_name, blocks))
        gptq = Gptq(damp=self.damp, block=self.block)
        perm = H.diagonal().argsort(descending=True, stable=True)
        U = gptq.factor(H[perm][:, perm], stats.tokens)
        codes = gptq.quantize(W[:, perm], U, grid, perm)[0][:, perm.argsort()]
        H.diagonal().add_(self.damp * H.diagonal().mean())
        for _ in range(self.sweeps):
            codes = self.descend(W, H, grid, codes)
            grid = fitted(W, H, grid, codes)
        return grid.tensor(codes)

    def descend(self, W: Tensor, H: Tensor, grid: Grid, codes: Tensor) -> Tensor:
        """One sweep over the columns: each code goes where the row's objective is least."""
        Q = values(grid, codes)
        sweep = _Sweep(H, grid, codes.T.contiguous(), Q.T.contiguous(), (H @ (W - Q).T))
        sweep.run(0, W.shape[1], self.block)
        return sweep.codes.T


@dataclass(frozen=True, slots=True)
class _Sweep:
    """A sweep under way, columns as rows.

    G      H (W - Q)^T, for Q as it stands: brought up to date by blocks, as GPTQ's updates are
    """

    H: Tensor
    grid: Grid
    codes: Tensor
    Q: Tensor
    G: Tensor

    def run(self, i1: int, i2: int, block: int) -> None:
        """Columns i1 to i2; G from i1 on is up to date as far as columns before i1 go."""
        if i2 - i1 <= block:
            for i in range(i1, i2):
                self._column(i, i2)
            return
        middle = i1 + -(-(i2 - i1) // (2 * block)) * block
        before = self.Q[i1:middle].clone()
        self.run(i1, middle, block)
        moved = self.Q[i1:middle] - before
        self.G[middle:i2].addmm_(self.H[middle:i2, i1:middle], moved, alpha=-1)
        self.run(middle, i2, block)

    def _column(self, i: int, i2: int) -> None:
        # G_i without the column's own share, over H_ii: the error the others leave to it.
        wanted = self.Q[i] + self.G[i] / self.H[i, i]
        self.codes[i], found = self.grid.nearest(wanted, i // self.grid.group)
        self.G[i:i2].addr_(self.H[i, i:i2], found - self.Q[i], alpha=-1)
        self.Q[i] = found


class StoredGrid(Grid):
    """A Grid whose scales are those of an encoding at hand."""

    def __init__(self, weight: Tensor, stored: QuantizedTensor) -> None:
        self._given = stored
        super().__init__(weight, stored.format)

    def _encoded(self, weight: Tensor) -> QuantizedTensor:
        return self._given


def values(grid: Grid, codes: Tensor) -> Tensor:
    """float32 [out, in]: what the codes stand for on this grid."""
    return torch.from_numpy(grid.tensor(codes).dequantize())


def objective(W: Tensor, H: Tensor, Q: Tensor) -> Tensor:
    """[out]: (w - q) H (w - q)^T of each row."""
    E = W - Q
    return ((E @ H) * E).sum(1)


def fitted(W: Tensor, H: Tensor, grid: StoredGrid, codes: Tensor) -> StoredGrid:
    """The grid with each row's fp16 scales (and offsets) at their least squares given the codes,
    where that lowers the row's objective after rounding them."""
    old = grid.tensor(codes)
    basis, tops = _basis(old)
    HB = torch.einsum("ij,rjp->rip", H, basis)
    normal = torch.einsum("rip,riq->rpq", basis, HB)
    wanted = torch.einsum("ri,rip->rp", W, HB)
    size = normal.diagonal(dim1=1, dim2=2).mean(1)[:, None]
    normal.diagonal(dim1=1, dim2=2).add_(1e-6 * size + 1e-30)
    # What the ridge pulls to is the scales as they are.
    rest = wanted - torch.einsum("rpq,rq->rp", normal, tops)
    found = (tops + torch.linalg.solve(normal, rest)).numpy()
    new = _with_tops(old, found)
    if new is None:
        return grid
    before, after = objective(W, H, _as_tensor(old)), objective(W, H, _as_tensor(new))
    return StoredGrid(W, _rows_of(new, old, (after < before).numpy()))


def _as_tensor(tensor: QuantizedTensor) -> Tensor:
    return torch.from_numpy(tensor.dequantize())


def _parts(tensor: QuantizedTensor) -> tuple[str, str]:
    """Names of the fp16 scales and of the fp16 offsets."""
    two = tensor.super_scales is not None
    return ("super_scales", "super_zeros") if two else ("scales", "zeros")


def _basis(tensor: QuantizedTensor) -> tuple[Tensor, Tensor]:
    """Q = sum over p of tops[r, p] * basis[r, i, p]: [out, in, P] and [out, P], fp32."""
    scale_name, offset_name = _parts(tensor)
    scales = getattr(tensor, scale_name).astype(np.float32)
    rows, count = scales.shape
    width = tensor.shape[1] // count
    unit = replace(tensor, **{scale_name: np.ones_like(getattr(tensor, scale_name))})
    offsets = getattr(tensor, offset_name)
    tops, parts = [scales], [unit]
    if offsets is not None:
        zero = {offset_name: np.zeros_like(offsets)}
        one = {offset_name: np.ones_like(offsets), scale_name: np.zeros_like(scales, np.float16)}
        parts = [replace(unit, **zero), replace(tensor, **one)]
        tops.append(offsets.astype(np.float32))
    basis = np.zeros((rows, count, width, len(parts), count), np.float32)
    for k, part in enumerate(parts):
        values = part.dequantize().reshape(rows, count, width)
        for n in range(count):
            basis[:, n, :, k, n] = values[:, n]
    flat = basis.reshape(rows, tensor.shape[1], len(parts) * count)
    return torch.from_numpy(flat), torch.from_numpy(np.hstack(tops))


def _with_tops(tensor: QuantizedTensor, tops: np.ndarray) -> QuantizedTensor | None:
    """The tensor with these scales and offsets in fp16; None when one is beyond fp16."""
    scale_name, offset_name = _parts(tensor)
    count = getattr(tensor, scale_name).shape[1]
    with np.errstate(over="ignore"):
        halves = tops.astype(np.float16)
    if not np.isfinite(halves).all():
        return None
    parts: dict[str, Any] = {scale_name: halves[:, :count]}
    if getattr(tensor, offset_name) is not None:
        parts[offset_name] = halves[:, count:]
    whole: dict[str, Any] = {name: np.ascontiguousarray(part) for name, part in parts.items()}
    return replace(tensor, **whole)


def _rows_of(new: QuantizedTensor, old: QuantizedTensor, pick: np.ndarray) -> QuantizedTensor:
    """`new`'s scales in the rows picked, `old`'s in the others."""
    parts: dict[str, Any] = {
        name: np.where(pick[:, None], getattr(new, name), getattr(old, name))
        for name in _parts(new) if getattr(new, name) is not None
    }  # fmt: skip
    return replace(new, **parts)
