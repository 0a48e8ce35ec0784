"""The 2-bit trellis: the level of a weight follows from its own code and the next three.

QTIP (arXiv 2406.11235, section 3), after trellis coded quantization (Marcellin and Fischer, 1990).
The 32 codes of a run are a word of 64 bits, which is taken as a ring: weight i of the run has the
level of `window = rotr(word, 2 i) & 255`. Two neighbours share 6 of their 8 bits, so that a run is
one of 2^64 points in 32 dimensions, near the best that 2 bits can do, and decoding stays a rotation
and a look-up. Encoding is a search for the shortest path: what is left of a window when the next
weight's begins, its upper 6 bits, is the state.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.formats.floats import Array

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

VARIANT = "trellis2"
RUN = 32  # weights of a run
WINDOWS, STATES = 256, 64
# What the root mean square of weights should be in units of the scale: the levels, quantiles of a
# normal distribution of deviation 44, leave the least error of normal runs so.
SPREAD = 43.0
# A window's rank among the quantiles: that of all (odd factor, offset) with the least error on
# normal runs. The four windows that may follow a state differ by quarters of the ranks.
_FACTOR, _OFFSET = 185, 20
_NO_WAY = 1e30  # more than any path costs
_AT_A_TIME = 2048  # runs searched together: bounds the temporaries to some 50 MB


@cache
def levels() -> F32:
    """float32 [256], read-only: the level of each window, an integer from -127 to 127."""
    ranks = (np.arange(WINDOWS) * _FACTOR + _OFFSET) % WINDOWS
    quantile = NormalDist().inv_cdf
    peak = quantile(1 - 0.5 / WINDOWS)
    found = [round(127 * quantile((rank + 0.5) / WINDOWS) / peak) for rank in ranks.tolist()]
    table = np.array(found, np.float32)
    table.flags.writeable = False
    return table


def windows(packed: U8) -> U8:
    """uint8 [rows, k / 4] of packed codes -> the window of each weight, uint8 [rows, k]."""
    words = np.ascontiguousarray(packed).view("<u8")
    out = np.empty((*words.shape, RUN), np.uint8)
    for i in range(RUN):
        left, right = np.uint64((64 - 2 * i) % 64), np.uint64(2 * i)
        out[..., i] = ((words >> right | words << left) & np.uint64(255)).astype(np.uint8)
    return out.reshape(packed.shape[0], -1)


def nearest(x: Array, xp: Any) -> Array:
    """Windows, int64 [n, 32], of a path near runs x, float32 [n, 32] in units of the scale.

    The ring is closed by the authors' two searches (section 4.2): of the path through the run
    turned by half, which may begin and end anywhere, only the state where the run begins is kept,
    and the second search begins and ends there. Ties go to the smaller window.
    """
    found = [_closed(x[i : i + _AT_A_TIME].T, xp) for i in range(0, len(x), _AT_A_TIME)]
    return xp.concatenate(found, axis=0)


def _closed(x: Array, xp: Any) -> Array:
    half = RUN // 2
    anywhere = xp.zeros((STATES, x.shape[1]), dtype=x.dtype)
    turned = _path(xp.concatenate([x[half:], x[:half]], axis=0), anywhere, None, xp)
    state = turned[half] & (STATES - 1)
    elsewhere = xp.arange(STATES)[:, None] != state
    start = xp.where(elsewhere, xp.full_like(anywhere, _NO_WAY), anywhere)
    return xp.stack(_path(x, start, state, xp), axis=1)


def _path(x: Array, cost: Array, end: Array | None, xp: Any) -> list[Array]:
    """Viterbi's algorithm: the windows, a list of 32 arrays [n], of the cheapest path that ends in
    state `end`. x [32, n]; cost [64, n], of beginning in each state."""
    table, choices = xp.asarray(np.array(levels())[:, None]), []
    for weight in x:
        error = weight - table
        into = xp.reshape(xp.tile(cost, (4, 1)) + error * error, (STATES, 4, -1))
        cost, choice = into[:, 0], xp.zeros(into[:, 0].shape, dtype=xp.uint8)
        for a in range(1, 4):  # window 4 s + a leads to state s
            choice = xp.where(into[:, a] < cost, xp.full_like(choice, a), choice)
            cost = xp.minimum(into[:, a], cost)
        choices.append(choice)
    state = xp.argmin(cost, axis=0) if end is None else end
    runs, path = xp.arange(x.shape[1]), []
    for choice in reversed(choices):
        window = 4 * state + xp.asarray(choice[state, runs], dtype=xp.int64)
        path.append(window)
        state = window & (STATES - 1)
    return path[::-1]
