"""Statistics of linear inputs, gathered as rows pass by; one gatherer per shared input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from octavo import _native
from octavo.compress.base import LinearStats, Needs
from octavo.formats.casts import CastCounts, count_cast

CAST_TO = ("fp16", "bf16")
GATHERED = 4096  # rows of a product, at most
_PACKED = 1024  # rows of a product in bf16: native/pack/gram.h


class StatsGatherer:
    """Sums what `needs` asks for over rows x [rows, in]; sums run in the order of the rows.

    halves  the Hessian is that of x rounded to bf16, which is what a layer in bf16 multiplies.
    """

    def __init__(self, needs: Needs, width: int, halves: bool = False) -> None:
        self._needs = needs
        self._tokens = 0
        self._absmax = torch.zeros(width)
        self._sum_abs = torch.zeros(width, dtype=torch.float64)
        self._sum_squares = torch.zeros(width, dtype=torch.float64)
        self._products = products(width, halves) if Needs.HESSIAN in needs else None
        self._samples: list[Tensor] = []
        self._casts = dict.fromkeys(CAST_TO, CastCounts())

    def add(self, x: Tensor, sampled: bool) -> None:
        """Rows fp32 [rows, in]; `sampled`: they are among those kept for SAMPLES."""
        if not len(x):
            return
        self._tokens += len(x)
        if Needs.ABSMAX in self._needs:
            self._absmax = torch.maximum(self._absmax, x.abs().amax(dim=0))
        if Needs.MEAN_ABS in self._needs:
            self._sum_abs += x.abs().sum(dim=0, dtype=torch.float64)
        if Needs.MEAN_SQUARE in self._needs:
            self._sum_squares += x.square().sum(dim=0, dtype=torch.float64)
        if self._products is not None:
            self._products.add(x)
        if Needs.CASTS in self._needs:
            for name in CAST_TO:
                self._casts[name] += count_cast(x, name, torch)
        if Needs.SAMPLES in self._needs and sampled:
            self._samples.append(x.clone())

    def stats(self) -> LinearStats:
        """What was asked for; with no rows seen, `tokens` is 0 and all else None."""
        if not self._tokens:
            return LinearStats()
        needs, n = self._needs, self._tokens
        return LinearStats(
            tokens=n,
            absmax=self._absmax if Needs.ABSMAX in needs else None,
            mean_abs=(self._sum_abs / n).float() if Needs.MEAN_ABS in needs else None,
            hessian=None if self._products is None else self._products.sum() * (2.0 / n),
            samples=torch.cat(self._samples) if self._samples else None,
            mean_square=(self._sum_squares / n).float() if Needs.MEAN_SQUARE in needs else None,
            casts=dict(self._casts) if Needs.CASTS in needs else None,
        )


def of_both_uses(stats: LinearStats) -> LinearStats:
    """Of a table that is embedding and head in one. The head's error is tr(E H E^T); a row that is
    looked up is an input as it is, all its channels alike, so to H comes as much of the identity as
    makes both parts' traces equal. H alone lets an encoder move what the head doesn't see: at 2
    bits the KL of a small tied model was 0.151 with it, 0.111 with both, llama.cpp's 0.149.
    """
    if stats.hessian is None:
        return stats
    mean = stats.hessian.diagonal().mean()
    return replace(stats, hessian=stats.hessian + mean * torch.eye(len(stats.hessian)))


class Products(Protocol):
    """The sum of x x^T over rows x."""

    def add(self, x: Tensor) -> None:
        """Rows fp32 [rows, width]."""

    def sum(self) -> Tensor:
        """fp32 [width, width]; no more rows follow."""


def products(width: int, halves: bool) -> Products:
    """Of rows as they are, or of rows rounded to bf16."""
    if not halves:
        return FloatProducts(width)
    return HalfProducts(width) if _native.gram_supported() else RoundedProducts(width)


class FloatProducts:
    """The sum of x x^T over rows x. Rows are gathered for a product of many, since each one costs a
    pass over the whole square besides; a narrow square gathers no more than its own size."""

    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, width)
        self._rows = torch.empty(min(GATHERED, width), width)
        self._filled = 0

    def add(self, x: Tensor) -> None:
        while len(x):
            taken = min(len(x), len(self._rows) - self._filled)
            self._rows[self._filled : self._filled + taken] = x[:taken]
            self._filled, x = self._filled + taken, x[taken:]
            if self._filled == len(self._rows):
                self._multiply()

    def sum(self) -> Tensor:
        self._multiply()
        return self._sum

    def _multiply(self) -> None:
        rows = self._rows[: self._filled].numpy()
        self._sum += torch.from_numpy(rows.T @ rows)  # numpy's is symmetric: half the work
        self._filled = 0


class RoundedProducts(FloatProducts):
    """Of rows rounded to bf16, where no instruction multiplies them."""

    def add(self, x: Tensor) -> None:
        super().add(x.bfloat16().float())


class HalfProducts:
    """Of rows rounded to bf16, by vdpbf16ps: twice as fast as fp32's half square here. Bits do not
    depend on the number of threads."""

    def __init__(self, width: int) -> None:
        self._sum = np.zeros((width, width), np.float32)  # below the diagonal
        self._pairs = np.zeros(_native.gram_words(width), np.uint32)
        self._filled = 0
        self._pool = ThreadPoolExecutor(torch.get_num_threads())

    def add(self, x: Tensor) -> None:
        rows = np.ascontiguousarray(x.numpy())
        while len(rows):
            taken = rows[: _PACKED - self._filled]
            _native.gram_pack(taken, self._filled, self._pairs)
            rows = rows[len(taken) :]
            self._filled += len(taken) + len(taken) % 2  # a word holds two rows
            if self._filled == _PACKED:
                self._multiply()

    def sum(self) -> Tensor:
        self._multiply()
        self._pool.shutdown()
        found = torch.from_numpy(self._sum).tril_()
        return found.add_(found.tril(-1).T)

    def _multiply(self) -> None:
        def add(task: int) -> None:
            _native.gram_add(self._pairs, self._filled // 2, task, self._sum)

        list(self._pool.map(add, range(_native.gram_tasks(len(self._sum)))))
        self._filled = 0


def sampled_sequences(count: int, length: int, rows: int = 4096) -> frozenset[int]:
    """Which of `count` sequences SAMPLES keeps whole: evenly spread, at most `rows` rows, or one
    sequence where that is longer."""
    kept = max(1, min(count, rows // length))
    return frozenset(i * count // kept for i in range(kept))


def rescaled(stats: LinearStats, scale: Tensor) -> LinearStats:
    """The statistics after every input x_i became x_i / scale_i (a fold in front of them)."""
    parts = {
        "absmax": None if stats.absmax is None else stats.absmax / scale,
        "mean_abs": None if stats.mean_abs is None else stats.mean_abs / scale,
        "hessian": None if stats.hessian is None else stats.hessian / scale.outer(scale),
        "samples": None if stats.samples is None else stats.samples / scale,
        "mean_square": None if stats.mean_square is None else stats.mean_square / scale.square(),
    }
    return LinearStats(tokens=stats.tokens, fisher=stats.fisher, casts=stats.casts, **parts)
