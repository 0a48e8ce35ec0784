"""Log-softmax in fp64, in blocks that stay in cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from octavo.core.errors import OctavoError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
CELLS = 1 << 21  # of fp64: 16 MB a temporary


def log_softmax(logits: F32) -> F64:
    """Log-probabilities of [rows, vocab] logits; -inf logits are impossible tokens."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def row_blocks(rows: int, vocab: int) -> Iterator[slice]:
    """Slices that cover `rows`, small enough for fp64 temporaries."""
    step = max(1, CELLS // vocab)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def check_finite(logits: F32, name: str) -> None:
    """Raise OctavoError when a row has a NaN, or no possible token at all."""
    peak = logits.max(axis=1)
    if not np.isfinite(peak).all():
        row = int(np.flatnonzero(~np.isfinite(peak))[0])
        raise OctavoError(
            f"{name}: logits of row {row} of a block are not numbers: "
            "the model file is damaged or its format overflows; try --activations a32"
        )
