"""Rows of stored tables, picked and put together without touching a code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from octavo.core.errors import FormatError
from octavo.formats.quantized import QuantizedTensor

Array = npt.NDArray[np.generic]
_SHARED = ("t.codebook", "t.tensor_scale")  # of all rows


def take(tensor: QuantizedTensor, ids: npt.NDArray[np.int64]) -> QuantizedTensor:
    """The rows `ids`, in their order, as they are stored."""
    return _mapped(tensor, len(ids), lambda name, part: part[ids])


def stacked(first: QuantizedTensor, second: QuantizedTensor) -> QuantizedTensor:
    """The rows of two tables of one format, one after the other.

    Raises FormatError when the tables share no format, or when something else than codes is common
    to all rows of one and differs in the other.
    """
    below = second.state("t")
    if first.format != second.format or first.shape[1] != second.shape[1]:
        raise FormatError(
            f"rows of {second.format} {list(second.shape)} can't follow {first.format} "
            f"{list(first.shape)}: encode them alike"
        )
    for name, part in first.state("t").items():
        common = name in _SHARED or len(part) != first.shape[0]
        if common and not np.array_equal(part, below.get(name, part)):
            raise FormatError(f"{first.format}: {name[2:]} is shared by all rows and differs")
    rows = first.shape[0] + second.shape[0]
    return _mapped(first, rows, lambda name, part: np.concatenate([part, below[name]]))


def _mapped(
    tensor: QuantizedTensor, rows: int, change: Callable[[str, Array], Array]
) -> QuantizedTensor:
    state = {
        name: part if name in _SHARED or len(part) != tensor.shape[0] else change(name, part)
        for name, part in tensor.state("t").items()
    }
    return QuantizedTensor.from_state(state, "t", tensor.format, (rows, tensor.shape[1]))
