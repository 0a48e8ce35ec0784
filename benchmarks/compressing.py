"""What compressing a model takes: seconds, CPU seconds and peak memory, beside what was forecast.

    python benchmarks/compressing.py MODEL OUT [--method M] [--format F] [--head F] [--sequences N]
        [--length L] [--precision P] [--calibration FILE] [--tokens N]

OUT is a new artifact, kept. A run that was stopped goes on where it was when the same command is
given again; its figures are then those of the rest. With --tokens, KL on that many tokens of the
held-out half of the text and of code is printed too, after the times were taken.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from octavo.compress.job import Material, compress, read_material
from octavo.compress.quality import measure
from octavo.compress.recipe import Calibration, Recipe, from_flags
from octavo.core.allocator import keep_freed_memory
from octavo.io.hub import resolve_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--format", default="int4_g64")
    parser.add_argument("--head", default="int8_g32", help="of embedding and head")
    parser.add_argument("--sequences", type=int, default=24)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--calibration", default="")
    parser.add_argument("--tokens", type=int, default=0)
    wanted = parser.parse_args()
    keep_freed_memory()
    calibration = Calibration(wanted.calibration, wanted.sequences, wanted.length, wanted.precision)
    outside = (("embed", wanted.head), ("head", wanted.head))
    recipe = from_flags(wanted.method, wanted.format, outside, calibration)
    path = resolve_model(wanted.model)
    material = read_material(path, recipe, limit=wanted.tokens or 2048)
    if not wanted.out.exists():
        _timed(path, recipe, wanted.out, Material(material.tokens, (), material.name))
    if wanted.tokens:
        for name, report in measure(wanted.out, path, material.held_out).texts:
            kl, same = report.kl_mean, report.same_top.value
            print(f"{name}: KL {kl.value:.5f} ({kl.low:.5f} to {kl.high:.5f}), same top {same:.1%}")


def _timed(path: Path, recipe: Recipe, out: Path, material: Material) -> None:
    begin, cpu = time.monotonic(), time.process_time()

    def progress(stage: str, done: int, total: int) -> None:
        spent = f"{time.monotonic() - begin:.1f} s, {time.process_time() - cpu:.1f} CPU s"
        print(f"{done}/{total} {stage}: {spent}", flush=True)

    result = compress(path, recipe, out, material, progress)
    made = result.forecast
    print(f"{result.report.bits_per_weight:.3f} bits a weight, {result.report.bytes / 1e6:.1f} MB")
    print(f"peak memory: {_beside(made.predicted_peak, made.peak, 1e6, 'MB')}")
    print(f"compressing: {_beside(made.predicted_seconds, made.seconds, 1, 's')}")


def _beside(predicted: float | None, came: float | None, unit: float, name: str) -> str:
    if predicted is None or came is None:
        return "no forecast"
    return (
        f"{came / unit:.0f} {name}, predicted {predicted / unit:.0f} ({predicted / came - 1:+.0%})"
    )


if __name__ == "__main__":
    main()
