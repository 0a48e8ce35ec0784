"""Hostile bodies through the whole server: every answer is a 2xx or a 4xx that says why.

    python scripts/fuzz_server.py --cases 10000 --seed 0     all of it
    python scripts/fuzz_server.py --case 4711 --seed 0       one case again, with its body

The server runs in this process over an executor that counts, so that thousands of bodies cost a
minute or two. Every hundred cases the engine's books are checked and a sound request is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.body_fuzz import Case, case, healthy, send
from support.serving import Served

_BETWEEN = 100


async def fuzz(served: Served, seed: int, cases: int) -> int:
    """How many failed; each is printed."""
    statuses: Counter[tuple[str, int]] = Counter()
    failed, slowest = 0, (0.0, 0)
    for number in range(cases):
        found = case(seed, number)
        begin = time.perf_counter()
        status, fault = await send(served, found)
        slowest = max(slowest, (time.perf_counter() - begin, number))
        statuses[found.path, status] += 1
        if fault:
            failed += 1
            print(f"case {number} {found.path}: {fault}")
        if number % _BETWEEN == _BETWEEN - 1 and not await healthy(served):
            failed += 1
            print(f"after case {number} the engine is not what it was")
    for (path, status), count in sorted(statuses.items()):
        print(f"{path:<30}{status}  {count}")
    print(f"{cases} cases, {failed} failed; the slowest, {slowest[1]}, took {slowest[0]:.2f} s")
    return failed


async def again(served: Served, found: Case) -> int:
    print(found.path, found.body[:4000].decode(errors="replace"))
    status, fault = await send(served, found)
    print(status, fault or "sound")
    return bool(fault)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    arguments = parser.parse_args()
    served = Served(context=256)
    try:
        if arguments.case is not None:
            return int(asyncio.run(again(served, case(arguments.seed, arguments.case))))
        logging.disable(logging.CRITICAL)
        return min(1, asyncio.run(fuzz(served, arguments.seed, arguments.cases)))
    finally:
        served.close()


if __name__ == "__main__":
    sys.exit(main())
