"""Octavo against itself: formats and activation formats at batch 1 to 64, and where they cross.

`python benchmarks/crossing.py [MODEL] [--svg FILE] [--json]`. Every plan is a process of its own;
rounds go over all of them at each batch. A point is memory-bound while doubling the batch (from or
to it) costs a step less than the square root of two: a step bound by memory costs the same for any
batch, one bound by arithmetic grows with it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from contenders import Pool, pool
from curves import svg
from engines import TOGETHER_PROMPT, Task

from octavo.cli.output import emit_json, markdown_table
from octavo.core.hardware import probe

BATCHES = (1, 2, 4, 8, 16, 32, 64)
FORMATS = ("bf16", "int8_g32", "int4_g32")
Curve = Mapping[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="steps of a sample")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--svg", type=Path, help="write the curves as a picture")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments)
    if arguments.svg:
        picture = svg(result["curves"], f"{arguments.model}: tokens per second by batch")
        arguments.svg.write_text(picture, encoding="utf-8")
    if arguments.json:
        emit_json(result)
    else:
        print(table(result))


def plans() -> dict[str, dict[str, str]]:
    """Every format with every activation format that a backend may offer it; a8_static takes an
    artifact's calibration."""
    from typing import get_args

    from octavo.backends.base import REFERENCE_ONLY, ActivationFormat

    left_out = ("auto", "a32", "a8_static", *REFERENCE_ONLY)
    offered = [name for name in get_args(ActivationFormat) if name not in left_out]
    return {
        f"{number_format} {activations}": {"format": number_format, "activations": activations}
        for number_format in FORMATS
        for activations in offered
        if number_format != "bf16" or activations == "abf16"
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians by plan and batch, and what follows from them."""
    samples: dict[str, dict[int, list[float]]] = {name: {} for name in plans()}
    refused: dict[str, str] = {}
    with pool() as runners:
        for batch in BATCHES:
            for _ in range(arguments.rounds):
                for name in [name for name in samples if name not in refused]:
                    try:
                        rate = _sample(runners, name, batch, arguments)
                    except RuntimeError as error:
                        refused[name] = str(error)
                        continue
                    samples[name].setdefault(batch, []).append(rate)
    curves = {
        name: {batch: statistics.median(rates) for batch, rates in by_batch.items()}
        for name, by_batch in samples.items()
        if name not in refused
    }
    return {
        "model": arguments.model,
        "machine": probe().cpu,
        "when": time.strftime("%Y-%m-%d"),
        "samples": samples,
        "refused": refused,
        "curves": curves,
        "bound": {name: bounds(curve) for name, curve in curves.items()},
        "crossings": crossings(curves),
    }


def _sample(runners: Pool, name: str, batch: int, arguments: argparse.Namespace) -> float:
    setup = {
        "engine": "octavo", "model": arguments.model, "threads": arguments.threads,
        "context": 256, "sequences": max(BATCHES), **plans()[name],
    }  # fmt: skip
    depth = TOGETHER_PROMPT if batch == 1 else 0  # a batch has its prompts before it
    task = Task("decode", arguments.tokens, depth, batch)
    runner = runners.get(name, setup)
    return task.work / runner.measure(task)


def bounds(curve: Curve) -> dict[int, str]:
    """Batch -> "memory" or "compute", by how a step's time grows (see the top)."""
    found = {}
    batches = sorted(curve)
    steps = {batch: batch / curve[batch] for batch in batches}
    for place, batch in enumerate(batches):
        other = batches[place + 1] if place + 1 < len(batches) else batches[place - 1]
        low, high = sorted((batch, other))
        growth = math.log(steps[high] / steps[low]) / math.log(high / low)
        found[batch] = "memory" if growth < 0.5 else "compute"
    return found


def crossings(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """Where one plan overtakes another, between which batches, straight lines in logarithms."""
    found = []
    for first, second in combinations(curves, 2):
        shared = sorted(set(curves[first]) & set(curves[second]))
        gaps = [math.log(curves[first][b] / curves[second][b]) for b in shared]
        for (low, high), (before, after) in zip(pairwise(shared), pairwise(gaps), strict=True):
            if before * after < 0:
                where = low * (high / low) ** (before / (before - after))
                ahead = second if before > 0 else first
                found.append({"from": (first, second), "batch": where, "ahead_beyond": ahead})
    return found


def table(result: Mapping[str, Any]) -> str:
    """Tokens per second; m or c behind each figure says what binds it."""
    header = ("plan", *(f"x{batch}" for batch in BATCHES))
    rows = [
        (name, *(_cell(curve.get(b), result["bound"][name].get(b)) for b in BATCHES))
        for name, curve in result["curves"].items()
    ]
    lines = [markdown_table(header, rows, ("left",) + ("right",) * len(BATCHES)), ""]
    lines += [
        f"{c['ahead_beyond']} is ahead beyond batch {c['batch']:.1f} ({' / '.join(c['from'])})"
        for c in result["crossings"]
    ]
    lines += [f"{name} not measured: {why}" for name, why in result["refused"].items()]
    return "\n".join([*lines, "m: bound by memory, c: by arithmetic", result["machine"]])


def _cell(rate: float | None, bound: str | None) -> str:
    return "" if rate is None or bound is None else f"{rate:.0f} {bound[0]}"


if __name__ == "__main__":
    main()
