"""2:4 panels against dense ones of the same values: seconds, bytes, and their ratio.

One core, codes of 4 and 8 bits in groups of 64, runs of both in turn, the minimum of each over the
repeats; every product is first held to be equal bit for bit. A weight beyond the caches tells what
fewer bytes gain, one that fits them what the expansion costs.
`python benchmarks/sparse.py [--isa NAME] [--repeats N] [--json]`
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from octavo._native import testing

SHAPES = {"memory": (24576, 4096), "cache": (768, 1024)}
ROWS = (1, 4, 16)
KINDS = {4: ("nibble", "sparse_nibble"), 8: ("byte", "sparse_byte")}
GROUP = 64


@dataclass(frozen=True, slots=True)
class Found:
    """`speed`: dense seconds / 2:4 seconds; `size`: dense bytes / 2:4 bytes."""

    where: str
    bits: int
    rows: int
    dense: float
    sparse: float
    speed: float
    size: float


def weights(shape: tuple[int, int], bits: int) -> tuple[Any, Any]:
    """(dense, 2:4) of equal values."""
    zero, draws = 1 << (bits - 1), np.random.default_rng(0)
    made = [testing.packed(*shape, code, GROUP, zero) for code in KINDS[bits]]
    scales = np.full((2048, shape[1] // GROUP), 2.0**-6, np.float32)
    for row in range(0, shape[0], 2048):
        count = min(2048, shape[0] - row)
        codes = draws.integers(0, 2 * zero, (count, shape[1]), dtype=np.uint8)
        fours = codes.reshape(count, -1, 4)
        first = draws.integers(0, 4, (*fours.shape[:2], 1))
        other = first ^ draws.integers(1, 4, first.shape)
        np.put_along_axis(fours, first, zero, 2)
        np.put_along_axis(fours, other, zero, 2)
        for weight in made:
            weight.pack_affine(row, codes, scales[:count])
    return made[0], made[1]


def measure(where: str, bits: int, isa: str, repeats: int) -> list[Found]:
    pair = weights(SHAPES[where], bits)
    kernels = [testing.selected(isa, weight, "a8") for weight in pair]
    found = []
    for rows in ROWS:
        x = np.random.default_rng(1).standard_normal((rows, SHAPES[where][1]), dtype=np.float32)
        best = [np.inf, np.inf]
        empty = np.inf
        results = [
            testing.linear(isa, k, w, x, 0, w.panels) for k, w in zip(kernels, pair, strict=True)
        ]
        assert results[0].tobytes() == results[1].tobytes()
        for _ in range(repeats if where == "memory" else 20 * repeats):
            for i, (kernel, weight) in enumerate(zip(kernels, pair, strict=True)):
                best[i] = min(best[i], _seconds(isa, kernel, weight, x, weight.panels))
            empty = min(empty, _seconds(isa, kernels[0], pair[0], x, 0))
        dense, sparse = best[0] - empty, best[1] - empty
        size = pair[0].panel_bytes / pair[1].panel_bytes
        found.append(Found(where, bits, rows, dense, sparse, dense / sparse, size))
    return found


def _seconds(isa: str, kernel: str, weight: Any, x: Any, panels: int) -> float:
    begin = time.thread_time()
    testing.linear(isa, kernel, weight, x, 0, panels)
    return time.thread_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=testing.isas()[-1])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = [
        f for b in KINDS for where in SHAPES for f in measure(where, b, asked.isa, asked.repeats)
    ]
    if asked.json:
        print(json.dumps([asdict(f) for f in found], indent=2))
        return
    print("| weights in | bits | rows | dense ms | 2:4 ms | speed | size |\n" + "|---" * 7 + "|")
    for f in found:
        print(
            f"| {f.where} | {f.bits} | {f.rows} | {1e3 * f.dense:.3f} | {1e3 * f.sparse:.3f} "
            f"| {f.speed:.2f} | {f.size:.2f} |"
        )


if __name__ == "__main__":
    main()
