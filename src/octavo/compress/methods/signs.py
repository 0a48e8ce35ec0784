"""Binary and ternary weights with the scale that fits them best.

Binary (XNOR-Net's BWN, arXiv 1603.05279, eq. 6): |w - s sign(w)|^2 is least at s = mean|w|. Ternary
(Ternary Weight Networks, arXiv 1605.04711, eq. 5): of |w - s t|^2 with t in {-1, 0, 1} the best t
keeps the largest |w|; with k kept the best s is their mean, and |w|^2 - (sum|w|)^2 / k is left.
TWN guesses the threshold from a distribution; here every k is tried, so the optimum is exact. With
weights h that count each error (mean squares of the inputs) the sums are weighted by h, and the
best t is still a threshold: t = 1 where |w| > s / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.facts import Facts
from octavo.core.errors import ConfigError, FormatError
from octavo.formats.floats import round_float, to_storage
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
_ZERO = 2  # ternary's code of 0


@dataclass(frozen=True, slots=True)
class Signs:
    """Encoder of binary and ternary formats, of any granularity.

    weigh  what an error counts: "inputs", the mean square of its input; "equal", all alike (no
           data).
    """

    facts: ClassVar[Facts] = Facts(
        output="approximated", quantizes="weights", choice="closed form",
        format="ternary_channel", source="arXiv 1603.05279, arXiv 1605.04711",
        synonyms=("binary", "ternary", "xnor-net", "bwn", "twn", "1 bit", "1.58 bits", "bitnet"),
    )  # fmt: skip

    weigh: Literal["inputs", "equal"] = "inputs"

    def __post_init__(self) -> None:
        if self.weigh not in ("inputs", "equal"):
            raise ConfigError(f"signs: weigh is {self.weigh!r}; it must be inputs or equal")

    @property
    def needs(self) -> Needs:
        return Needs.MEAN_SQUARE if self.weigh == "inputs" else Needs.NOTHING

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        self._check(target, mask is not None)
        W = weight.numpy() if mask is None else weight.numpy() * mask.numpy()
        shape = (W.shape[0], W.shape[1])
        groups = target.groups(shape)
        h = np.ones(W.shape[1]) if stats.mean_square is None else stats.mean_square.double().numpy()
        size = np.abs(W).astype(np.float64).reshape(groups)
        h = np.broadcast_to(h, W.shape).reshape(groups)
        best = binary_scale if target.variant == "binary" else ternary_scale
        s = round_float(best(size, h).astype(np.float32), target.scale, np)
        if not np.isfinite(s).all():
            raise FormatError(f"scales exceed the range of {target}; use _sbf16 or _sfp32 scales")
        codes = _codes(W.reshape(groups), s[..., None], target.variant).reshape(shape)
        scales = to_storage(s, target.scale)
        return QuantizedTensor(target, shape, pack_bits(codes, target.bits), scales)

    def _check(self, target: NumberFormat, pruned: bool) -> None:
        kinds = target.variant in ("binary", "ternary")
        if not kinds or target.scale not in ("fp16", "bf16", "fp32"):
            raise FormatError(
                f"signs makes binary and ternary weights (ternary_channel), not {target}"
            )
        if pruned and target.variant == "binary":
            raise FormatError(f"{target} can't store exact zeros: pruned weights need a zero")


def binary_scale(size: F64, h: F64) -> F64:
    """[rows, groups]: the least squares s of |w| = `size` [rows, groups, n], errors weighted."""
    total = h.sum(-1)
    found: F64 = np.where(total > 0, (h * size).sum(-1) / np.where(total > 0, total, 1), 0.0)
    return found


def ternary_scale(size: F64, h: F64) -> F64:
    """The same where weights may be 0: over all thresholds the one that leaves the least."""
    order = np.argsort(-size, axis=-1, kind="stable")
    a, b = (np.take_along_axis(x, order, -1) for x in (h * size, h))
    kept, counted = np.cumsum(a, -1), np.cumsum(b, -1)
    scale = np.divide(kept, counted, out=np.zeros_like(kept), where=counted > 0)
    at = (kept * scale).argmax(-1)[..., None]
    found: F64 = np.take_along_axis(scale, at, -1)[..., 0]
    return found


def _codes(w: F32, s: F32, variant: str) -> npt.NDArray[Any]:
    if variant == "binary":
        return (w >= 0).astype(np.uint8)
    kept = np.abs(w) > s / 2
    return np.where(kept & (s > 0), _ZERO + np.sign(w), _ZERO).astype(np.uint8)
