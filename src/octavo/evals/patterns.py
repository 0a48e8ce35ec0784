"""Panels that leave zeros out against dense ones of the same values: seconds and bytes.

One core; runs of both in turn, the minimum of each over the repeats; every product is first held to
be equal bit for bit. Calls over no panels at all take off what isn't the product.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo._native import testing
from octavo.backends.native.backend import resolve_isa
from octavo.backends.native.pattern_gains import Measured, PatternGain, machine_name
from octavo.backends.native.zeros import SPARSE_ISAS
from octavo.core.errors import InternalError
from octavo.core.hardware import probe
from octavo.formats.layouts import BLOCKS, NATIVE

U8 = npt.NDArray[np.uint8]
MEMORY = (81920, 4096)  # even a quarter of it is beyond the caches
CACHE = (768, 1024)  # fits the smallest that matter
GROUP = 64
_CHUNK = 2048  # rows that are drawn at once
_CODES = {
    ("dense", 4): "nibble", ("dense", 8): "byte",
    (NATIVE, 4): "sparse_nibble", (NATIVE, 8): "sparse_byte",
    (BLOCKS, 4): "block_nibble", (BLOCKS, 8): "block_byte",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A pattern of a weight of `bits`, `zeros` of it left out. columns: inputs that are pruned
    together, of blocks of 16 outputs."""

    pattern: str
    bits: int
    zeros: float = 0.5
    columns: int = 32


CASES = tuple(
    Case(pattern, bits, zeros)
    for bits in (4, 8)
    for pattern, zeros in ((NATIVE, 0.5), (BLOCKS, 0.5), (BLOCKS, 0.75))
)


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one product, dense and of the pattern."""

    rows: int
    dense: float
    pattern: float


def gains(
    cases: Sequence[Case] = CASES,
    rows: Sequence[int] = (1, 16),
    repeats: int = 7,
    progress: Callable[[str], None] | None = None,
) -> Measured:
    """Of weights beyond the caches, on this machine, today. Patterns that its instruction set
    has no hand-written kernel for are left out: they are expanded when they are loaded."""
    found, isa = [], resolve_isa("")
    for case in cases:
        if case.pattern == NATIVE and isa not in SPARSE_ISAS:
            continue
        if progress:
            progress(f"{case.pattern} {case.bits} bits {case.zeros:.0%}")
        pair = weights(case, MEMORY)
        smaller = pair[0].bytes / pair[1].bytes
        found += [
            PatternGain(
                case.pattern,
                case.bits,
                case.zeros,
                timed.rows,
                smaller,
                timed.dense / timed.pattern,
            )
            for timed in compare(pair, MEMORY[1], rows, repeats)
        ]
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return Measured(machine_name(probe(), isa), today, tuple(found))


def weights(case: Case, shape: tuple[int, int]) -> tuple[Any, Any]:
    """(dense, pattern) of equal values."""
    zero, draws = 1 << (case.bits - 1), np.random.default_rng(0)
    there = _blocks(case, shape, draws) if case.pattern == BLOCKS else None
    mask = None if there is None else np.packbits(there, axis=1, bitorder="little")
    made = [
        testing.packed(*shape, _CODES[name, case.bits], GROUP, zero, blocks=bits)
        for name, bits in (("dense", None), (case.pattern, mask))
    ]
    scales = np.full((_CHUNK, shape[1] // GROUP), 2.0**-6, np.float32)
    for row in range(0, shape[0], _CHUNK):
        count = min(_CHUNK, shape[0] - row)
        codes = draws.integers(0, 2 * zero, (count, shape[1]), dtype=np.uint8)
        if there is None:
            _thin_out(codes, zero, draws)
        else:
            mine = there[row // 16 : (row + count) // 16]
            codes[~mine.repeat(16, 0).repeat(32, 1)] = zero
        for weight in made:
            weight.pack_affine(row, codes, scales[:count])
    return made[0], made[1]


def compare(
    pair: tuple[Any, Any], width: int, rows: Sequence[int], repeats: int, isa: str = ""
) -> list[Timed]:
    """Raises InternalError when the products differ."""
    isa = resolve_isa(isa)
    kernels = [testing.selected(isa, weight, "a8") for weight in pair]
    found = []
    for count in rows:
        x = np.random.default_rng(1).standard_normal((count, width), dtype=np.float32)
        pairs = list(zip(kernels, pair, strict=True))
        first, second = (testing.linear(isa, k, w, x, 0, w.panels) for k, w in pairs)
        if first.tobytes() != second.tobytes():
            raise InternalError(f"{kernels[1]} differs from {kernels[0]} at {count} rows")
        best, empty = [np.inf, np.inf], np.inf
        for _ in range(repeats):
            for i, (kernel, weight) in enumerate(pairs):
                best[i] = min(best[i], _seconds(isa, kernel, weight, x, weight.panels))
            empty = min(empty, _seconds(isa, kernels[0], pair[0], x, 0))
        found.append(Timed(count, best[0] - empty, best[1] - empty))
    return found


def _seconds(isa: str, kernel: str, weight: Any, x: npt.NDArray[np.float32], panels: int) -> float:
    begin = time.thread_time()
    testing.linear(isa, kernel, weight, x, 0, panels)
    return time.thread_time() - begin


def _blocks(
    case: Case, shape: tuple[int, int], draws: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """bool [n / 16, k / 32]: of every row of blocks the same share, as pruning by rows does it."""
    wide = shape[1] // case.columns
    order = draws.random((shape[0] // 16, wide)).argsort(1)
    kept: npt.NDArray[np.bool_] = order >= round(case.zeros * wide)
    return kept.repeat(case.columns // 32, 1)


def _thin_out(codes: U8, zero: int, draws: np.random.Generator) -> None:
    """Two of every aligned four become zeros."""
    fours = codes.reshape(codes.shape[0], -1, 4)
    first = draws.integers(0, 4, (*fours.shape[:2], 1))
    other = first ^ draws.integers(1, 4, first.shape)
    np.put_along_axis(fours, first, zero, 2)
    np.put_along_axis(fours, other, zero, 2)
