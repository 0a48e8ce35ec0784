"""Weight clustering: 2^b shared values per tensor, found by k-means in one dimension.

Deep Compression (arXiv 1510.00149, section 3): minimize sum |w - c_k|^2 (eq. 2) from centroids
spread evenly between the smallest and the largest weight, so that the few large weights are
represented. SqueezeLLM (arXiv 2306.07629, section 4.1): minimize sum F_ii (w - Q(w))^2 instead, F
being the diagonal of the Fisher information, the mean of squared gradients of the loss.

A codebook belongs to the tensor here: SqueezeLLM's one per row would add 0.44 bits a weight at 576
inputs. Rows (or groups) share it after division by their own scale s, so that the error of a weight
counts s^2 times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.compress.methods.clusters import F64, Points, lloyd, optimal
from octavo.core.errors import ConfigError, FormatError
from octavo.formats.floats import round_float, to_storage
from octavo.formats.granularity import PerTensor
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor

F32 = npt.NDArray[np.float32]
Start = Literal["linear", "optimal"]

_POINTS = 512  # that stand for all weights when the best start is computed exactly


@dataclass(frozen=True, slots=True)
class KMeans:
    """Encoder of learned codebooks (lut4_channel), every weight counting alike; no data.

    start        "linear": Deep Compression's; "optimal": the exact optimum of a summary.
    iterations   at most so many of Lloyd's; it stops when nothing moves.
    """

    needs: ClassVar[Needs] = Needs.NOTHING
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="learned", format="lut4_g64",
        source="arXiv 1510.00149",
        synonyms=("weight clustering", "codebook", "deep compression", "k-means"),
    )  # fmt: skip

    start: Start = "optimal"
    iterations: int = 100

    def __post_init__(self) -> None:
        if self.start not in ("linear", "optimal"):
            raise ConfigError(f"kmeans: start is {self.start!r}; it must be linear or optimal")
        if self.iterations < 0:
            raise ConfigError(f"kmeans: iterations is {self.iterations}; it must be at least 0")

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        kept = None if mask is None else mask.numpy()
        return self._cluster(weight.numpy(), target, np.ones((1, 1)), kept)

    def _cluster(
        self, W: F32, target: NumberFormat, F: F64, kept: npt.NDArray[Any] | None
    ) -> QuantizedTensor:
        if target.variant != "learned" or target.super_scale or target.scale == "e4m3":
            raise FormatError(f"clustering needs a learned codebook (lut4_channel), not {target}")
        s = row_scales(W if kept is None else W * kept, target)
        each = np.repeat(s, W.shape[1] // s.shape[1], axis=1)
        u = np.divide(W, each, out=np.zeros_like(W), where=each != 0)
        importance = np.broadcast_to(F * each.astype(np.float64) ** 2, W.shape)
        chosen = slice(None) if kept is None else kept
        k = 2**target.bits - (kept is not None)  # a pruned tensor needs a level of 0
        c = self.centroids(u[chosen].ravel(), importance[chosen].ravel(), k)
        levels = np.sort(c if kept is None else np.append(c, 0.0)).astype(np.float32)
        codes = nearest(u, levels)
        if kept is not None:
            codes[~kept] = np.flatnonzero(levels == 0)[0]
        packed = pack_bits(codes.astype(np.uint8), target.bits)
        shape = (W.shape[0], W.shape[1])
        scales = to_storage(s, target.scale)
        return QuantizedTensor(target, shape, packed, scales, codebook=levels)

    def centroids(self, x: npt.NDArray[Any], importance: F64, k: int) -> F64:
        """float64 [k], ascending, for values x [n] that count `importance` [n] times."""
        if not len(x):
            return np.zeros(k)
        order = np.argsort(x, kind="stable")
        points = Points.of(x[order].astype(np.float64), importance[order])
        if self.start == "linear":
            c = np.linspace(points.x[0], points.x[-1], k)
        else:
            c = optimal(points.summary(_POINTS), k)
        return lloyd(points, c, self.iterations)[0]


@dataclass(frozen=True, slots=True)
class FisherKMeans(KMeans):
    """The same with SqueezeLLM's weights; `stats.fisher` comes from the loss on true tokens."""

    needs: ClassVar[Needs] = Needs.FISHER
    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="learned", format="lut4_g64",
        source="arXiv 2306.07629",
        synonyms=("weight clustering", "codebook", "fisher", "sensitivity", "k-means"),
    )  # fmt: skip

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        assert stats.fisher is not None
        kept = None if mask is None else mask.numpy()
        return self._cluster(weight.numpy(), target, stats.fisher.double().numpy(), kept)


def row_scales(W: F32, target: NumberFormat) -> F32:
    """Largest |w| of each row or group, as stored; 1 for a tensor, whose levels are its own."""
    if target.granularity == PerTensor():
        return np.ones((1, 1), np.float32)
    peak = np.abs(W.reshape(target.groups((W.shape[0], W.shape[1])))).max(-1)
    s: F32 = round_float(peak, target.scale, np)
    if not np.isfinite(s).all():
        raise FormatError(f"scales exceed the range of {target}; use _sbf16 or _sfp32 scales")
    return s


def nearest(u: F32, levels: F32) -> npt.NDArray[np.intp]:
    """Index of the nearest level; the lower one of a tie."""
    return np.searchsorted((levels[:-1] + levels[1:]) / 2, u, side="left")
