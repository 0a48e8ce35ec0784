"""Weights that leave zeros out (2:4, blocks of 16x32) against dense ones of the same values.

One core, codes of 4 and 8 bits in groups of 64 (octavo/evals/patterns.py says how). A weight beyond
the caches tells what fewer bytes gain, one that fits them what finding the codes costs.
`python benchmarks/sparse.py [--isa NAME] [--repeats N] [--where memory,cache] [--json]`;
`--record` writes the figures that come with Octavo, for `octavo methods` and receipts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

from octavo._native import testing
from octavo.backends.native.pattern_gains import RECORD
from octavo.evals.patterns import CACHE, CASES, MEMORY, Case, compare, gains, weights
from octavo.formats.layouts import BLOCKS

ROWS = (1, 4, 16)
SHAPES = {"memory": MEMORY, "cache": CACHE}
WIDER = tuple(Case(BLOCKS, bits, zeros, 64) for bits in (4, 8) for zeros in (0.5, 0.75))


@dataclass(frozen=True, slots=True)
class Found:
    """`speed`: dense seconds / the pattern's; `size`: dense bytes / the pattern's."""

    where: str
    pattern: str
    bits: int
    zeros: float
    rows: int
    dense: float
    seconds: float
    speed: float
    size: float


def measure(where: str, case: Case, isa: str, repeats: int) -> list[Found]:
    pair = weights(case, SHAPES[where])
    size = pair[0].bytes / pair[1].bytes
    name = case.pattern if case.columns == 32 else f"16x{case.columns}"
    times = repeats if where == "memory" else 20 * repeats
    what = (where, name, case.bits, case.zeros)
    return [
        Found(*what, t.rows, t.dense, t.pattern, t.dense / t.pattern, size)
        for t in compare(pair, SHAPES[where][1], ROWS, times, isa)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=testing.isas()[-1])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--where", default="memory,cache")
    parser.add_argument("--bits", type=int, choices=(4, 8))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    if asked.record:
        text = json.dumps(asdict(gains(repeats=asked.repeats)), indent=1)
        RECORD.write_text(text + "\n", encoding="utf-8")
        return
    cases = [case for case in (*CASES, *WIDER) if asked.bits in (None, case.bits)]
    wheres = asked.where.split(",")
    found = [
        f for where in wheres for c in cases for f in measure(where, c, asked.isa, asked.repeats)
    ]
    if asked.json:
        print(json.dumps([asdict(f) for f in found], indent=2))
        return
    print("| weights in | pattern | bits | zeros | rows | dense ms | ms | speed | size |")
    print("|---" * 9 + "|")
    for f in found:
        print(
            f"| {f.where} | {f.pattern} | {f.bits} | {f.zeros:.0%} | {f.rows} "
            f"| {1e3 * f.dense:.3f} | {1e3 * f.seconds:.3f} | {f.speed:.2f} | {f.size:.2f} |"
        )


if __name__ == "__main__":
    main()
