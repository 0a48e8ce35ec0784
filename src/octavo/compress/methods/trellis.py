"""Codes on a trellis under GPTQ's objective: the encoder of 2-bit weights.

The format is QTIP's (arXiv 2406.11235); so is rounding in blocks, whose errors move the columns
still to come (BlockLDLQ, from QuIP#, arXiv 2402.04396). QTIP's blocks are searched as if each
weight's error stayed where it is. Here every survivor of the search carries the columns that its
own path has moved, so that within a block the feedback is GPTQ's (arXiv 2210.17323), column by
column. Sweeps then encode block after block anew, given all others: coordinate descent as in
QuantEase (arXiv 2309.01885), over 32 columns at once. After each, the scales of a row move to their
least squares.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from octavo import _native
from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.compress.methods.gptq import Gptq, mean_of
from octavo.core.errors import ConfigError, FormatError, NumericsError
from octavo.formats import trellis
from octavo.formats.floats import to_storage
from octavo.formats.granularity import PerTensor
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rtn import scales_of

_RUN = trellis.RUN
_STATES = trellis.STATES
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Trellis:
    """Encoder of `trellis2` formats.

    tries       states in which a run's ring may close, the likeliest first; of 64
    sweeps      over all blocks again, each followed by a fit of the scales
    spread      first scales, over those that `rtn` takes: what makes up for others outgrows W
    damp, damp_increment, sequential  as GPTQ's
    """

    needs: ClassVar[Needs] = Needs.HESSIAN
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="searched on a grid",
        format="trellis2_g64", source="arXiv 2406.11235",
        synonyms=("qtip", "tcq", "trellis coded quantization", "viterbi", "vector codebook", "exl3",
                  "additive codebook"),
    )  # fmt: skip

    tries: int = 4
    sweeps: int = 2
    spread: float = 1.15
    damp: float = 0.01
    damp_increment: float = 0.01
    sequential: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.tries <= _STATES:
            raise ConfigError(f"trellis: tries is {self.tries}; it must be 1 to {_STATES}")
        if not (self.sweeps >= 0 and self.spread > 0 and self.damp >= 0 < self.damp_increment):
            raise ConfigError(
                "trellis: sweeps and damp must be >= 0, spread and damp_increment > 0"
            )

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        assert stats.hessian is not None
        if target.variant != trellis.VARIANT or mask is not None:
            what = f"{target} is no trellis" if mask is None else "it has no exact zeros"
            raise FormatError(f"trellis: {what}; it encodes trellis2_g64 and its like")
        H = stats.hessian.clone()
        dead = H.diagonal() == 0
        H.diagonal()[dead] = mean_of(H.diagonal()[~dead])
        W = weight.masked_fill(dead, 0.0)
        found = Encoding(W, scales_of((W * self.spread).numpy(), target), self.tries)
        gptq = Gptq(damp=self.damp, damp_increment=self.damp_increment)
        order = H.diagonal().reshape(-1, _RUN).mean(1).argsort(descending=True, stable=True)
        self.settle(found, H, order, gptq, stats.tokens)
        H.diagonal().add_(self.damp * H.diagonal().mean())
        for _ in range(self.sweeps):
            self.descend(found, H, order)
            found.fit(H)
        if not found.Q.isfinite().all():
            raise NumericsError(f"trellis: updates overflow with damp {self.damp:g}; raise damp")
        return found.tensor()

    def settle(self, found: Encoding, H: Tensor, order: Tensor, gptq: Gptq, tokens: int) -> None:
        """All blocks once, those of the largest inputs first; the errors of each move the rest."""
        perm = (order[:, None] * _RUN + torch.arange(_RUN)).reshape(-1)
        U = gptq.factor(H[perm][:, perm], tokens)
        rest = found.W[:, perm]
        for i, block in enumerate(order.tolist()):
            here, behind = slice(i * _RUN, (i + 1) * _RUN), slice((i + 1) * _RUN, None)
            target, own = rest[:, here], U[here, here].contiguous()
            found.put(block, found.search(block, target, own))
            error = target - found.values(block)
            rest[:, behind] -= _over(error, own) @ U[here, behind]

    def descend(self, found: Encoding, H: Tensor, order: Tensor) -> None:
        """Each block anew, given all others: its optimum in reals is Q + (E H) H_bb^-1. A row's
        run is replaced where that lowers the row's objective."""
        G = (found.W - found.Q) @ H
        alone = Gptq(damp=0.0)
        for block in order.tolist():
            here = slice(block * _RUN, (block + 1) * _RUN)
            own = alone.factor(H[here, here], 0).contiguous()
            before = found.Q[:, here].clone()
            target = before + G[:, here] @ own.T @ own
            words, old = found.search(block, target, own), found.words[:, block].copy()
            found.put(block, words)
            loss = _over(target - found.values(block), own).square().sum(1)
            better = loss < _over(target - before, own).square().sum(1)
            found.put(block, np.where(better.numpy(), words, old))
            G -= (found.Q[:, here] - before) @ H[here]


class Encoding:
    """Codes and scales of W [out, in] as they stand; block b is inputs 32 b to 32 b + 31.

    words [out, blocks], Q [out, in]: what they stand for.
    """

    def __init__(self, W: Tensor, stored: QuantizedTensor, tries: int) -> None:
        self.W, self._stored, self._tries = W, stored, tries
        rows, blocks = W.shape[0], W.shape[1] // _RUN
        self.words: Words = np.zeros((rows, blocks), np.uint64)
        self.Q = torch.zeros_like(W)
        self._levels = torch.from_numpy(trellis.levels().copy())
        self._steps = self._of_blocks(stored)

    def _of_blocks(self, stored: QuantizedTensor) -> Tensor:
        """[out, blocks]: the scale of each run."""
        steps = torch.from_numpy(stored.steps()).expand(self.W.shape[0], -1)
        return steps.repeat_interleave(self.words.shape[1] // steps.shape[1], dim=1)

    def search(self, block: int, target: Tensor, U: Tensor) -> Words:
        """Words [out] of the paths that lose least of `target` [out, 32], errors moving the rest of
        the run along U."""
        step = self._steps[:, block, None]
        x = (target / step).masked_fill_(step == 0, 0.0).contiguous().numpy()
        words = np.empty(len(x), np.uint64)
        u, levels, threads = U.numpy(), self._levels.numpy(), torch.get_num_threads()
        cuts = [len(x) * i // threads for i in range(threads + 1)]

        def part(start: int, stop: int) -> None:
            _native.trellis_encode(x[start:stop], u, levels, self._tries, words[start:stop])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda cut: part(*cut), pairwise(cuts)))
        return words

    def put(self, block: int, words: Words) -> None:
        self.words[:, block] = words
        here = slice(block * _RUN, (block + 1) * _RUN)
        self.Q[:, here] = self._units(words[:, None]) * self._steps[:, block, None]

    def values(self, block: int) -> Tensor:
        """[out, 32], what the words of a block stand for."""
        return self.Q[:, block * _RUN : (block + 1) * _RUN]

    def tensor(self) -> QuantizedTensor:
        return replace(self._stored, codes=self.words.astype("<u8").view(np.uint8))

    def fit(self, H: Tensor) -> None:
        """Each row's scales to their least squares given the codes, where that lowers its
        objective once they are rounded; formats with one scale for several groups keep theirs."""
        format = self._stored.format
        if format.super_scale or format.scale == "e4m3" or format.granularity == PerTensor():
            return
        units, old = self._units(self.words), torch.from_numpy(self._stored.steps())
        normal, wanted = _normal_equations(units, self.W, H, old.shape[1])
        size = normal.diagonal(dim1=1, dim2=2).mean(1)[:, None]
        normal.diagonal(dim1=1, dim2=2).add_(1e-6 * size + 1e-30)  # a ridge, towards the old ones
        moved = torch.linalg.solve(normal, wanted - (normal @ old[..., None])[..., 0])
        scales = to_storage((old + moved).numpy(), format.scale)
        if not np.isfinite(scales.astype(np.float32)).all():
            return
        fitted = replace(self._stored, scales=scales)
        Q = units * self._of_blocks(fitted).repeat_interleave(_RUN, dim=1)
        better = objective(self.W - Q, H) < objective(self.W - self.Q, H)
        assert self._stored.scales is not None
        kept = np.where(better.numpy()[:, None], scales, self._stored.scales)
        self._stored = replace(self._stored, scales=kept)
        self._steps = self._of_blocks(self._stored)
        self.Q = torch.where(better[:, None], Q, self.Q)

    def _units(self, words: Words) -> Tensor:
        """float32 [out, 32 blocks]: the levels of words [out, blocks]."""
        packed = np.ascontiguousarray(words.astype("<u8")).view(np.uint8)
        return self._levels[torch.from_numpy(trellis.windows(packed)).long()]


def objective(E: Tensor, H: Tensor) -> Tensor:
    """[out]: e H e^T of each row of errors."""
    return ((E @ H) * E).sum(1)


def _over(error: Tensor, U: Tensor) -> Tensor:
    """E with E U = error: GPTQ's errors of a block, whose squares are what it costs."""
    found: Tensor = solve_triangular(U, error, upper=True, left=False)
    return found


def _normal_equations(units: Tensor, W: Tensor, H: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Of the scales s [out, groups] with the least tr((W - s units) H (W - s units)^T): a matrix
    [out, groups, groups] and a right side [out, groups]."""
    rows, width = units.shape
    size = width // groups
    normal, wanted = W.new_empty(rows, groups, groups), W.new_empty(rows, groups)
    for g in range(groups):
        here = slice(g * size, (g + 1) * size)
        moved = units[:, here] @ H[here]
        normal[:, g] = (moved * units).reshape(rows, groups, size).sum(2)
        wanted[:, g] = (moved * W).sum(1)
    return normal, wanted
