"""Speed of one row of activations times a weight in every native format, against a plain read.

One core, weights beyond the caches (134 million of them), random codes, the own time of the thread,
minimum over repeats, all formats in turn, each beside a dot product of as many bytes as the plain
read. All are held at once: name a few where 3 GB are too much.
`python benchmarks/weight_formats.py [--isa NAME] [--json] [FORMAT ...]`
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from octavo import _native
from octavo._native import testing
from octavo.backends.native.recipe import plan_of
from octavo.formats import trellis
from octavo.formats.activations import takes_a8
from octavo.formats.codebooks import level_steps, named_levels
from octavo.formats.number_format import NumberFormat

SHAPE = (32768, 4096)
MODEL_WEIGHTS = 134.5e6  # of SmolLM2-135M's matrices: what a token is here
FORMATS = (
    *("int2_g64", "int3_g64", "int4_g32", "int4_g64", "int5_g32", "int6_g32", "int8_g32"),
    *("int4_g32_asym", "int2_g64_asym", "int4_g32_offset", "int5_g32_offset"),
    *("int2_g16_offset_su4x256", "int3_g16_si6x256", "int4_g32_offset_su6x256"),
    *("int5_g32_offset_su6x256", "int6_g16_si8x256", "iq4nl_g32", "iq4nl_g32_si6x256"),
    *("nf4_g64", "lut3_g64", "trellis2_g64", "fp8_e4m3_channel", "fp16", "bf16"),
)
CODES = {
    _native.Code.TWO: "two", _native.Code.THREE: "three", _native.Code.NIBBLE: "nibble",
    _native.Code.FIVE: "five", _native.Code.SIX: "six", _native.Code.BYTE: "byte",
    _native.Code.F16: "f16", _native.Code.BF16: "bf16", _native.Code.TRELLIS: "trellis",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Speed:
    format: str
    kernel: str
    bits: float
    gigabytes_per_second: float
    share_of_read: float
    tokens_per_second: float


def packed(format: NumberFormat) -> Any:
    """A weight of SHAPE with random codes."""
    plan, draws = plan_of(format, SHAPE), np.random.default_rng(0)
    extra = "offset" if plan.has_offset else "zero" if plan.has_zero else ""
    weight = testing.packed(
        *SHAPE, CODES[plan.code], plan.group, plan.zero, plan.scaling.name.lower(), extra,
        (plan.super_group, plan.sub_bias),
    )  # fmt: skip
    if format.kind == "codebook" or (format.bits == 8 and format.kind == "float"):
        _give_levels(weight, format)
    for row in range(0, SHAPE[0], 2048):
        _fill(weight, plan, format, row, draws)
    return weight


def _give_levels(weight: Any, format: NumberFormat) -> None:
    if format.run > 1:
        weight.set_levels8(trellis.levels().astype(np.int8))
        return
    learned = np.linspace(-1, 1, 2**format.bits, dtype=np.float32) ** 3
    stored = learned if format.variant == "learned" else named_levels(format)
    levels = np.zeros(16 if format.bits <= 4 else 256, np.float32)
    levels[: stored.size] = stored
    if format.variant == "iq4nl":
        weight.set_levels8(levels.astype(np.int8))
    elif takes_a8(format):
        integers, step = level_steps(levels)
        weight.set_levels(levels, integers.tolist(), step)
    else:
        weight.set_levels(levels)


def _fill(weight: Any, plan: Any, format: NumberFormat, row: int, draws: Any) -> None:
    rows, width = 2048, SHAPE[1]
    if plan.group == 0:
        weight.pack_f32(row, draws.standard_normal((rows, width), dtype=np.float32))
        return
    groups = max(1, width // plan.group)
    supers = groups if plan.super_group == 0 else width // plan.super_group
    codes = draws.integers(0, 1 << format.bits, (rows, width), dtype=np.uint8)
    scales = np.full((rows, supers), 2.0**-6, np.float32)
    small = np.ones((rows, groups), np.uint8)
    subs = small if plan.super_group else None
    offsets, zeros = scales if plan.has_offset else None, small if plan.has_zero else None
    weight.pack_affine(row, codes, scales, offsets, zeros, subs, subs if plan.has_offset else None)


class Timed:
    """A format's weight, and the smallest times of it so far."""

    def __init__(self, name: str, isa: str) -> None:
        format = NumberFormat.parse(name)
        self.name, self.isa, self.weight = name, isa, packed(format)
        exact = format.variant == "fp16"
        act = "a8" if takes_a8(format) else "a32" if exact else "abf16"
        self.kernel = testing.selected(isa, self.weight, act)
        self.size = self.weight.panels * self.weight.panel_bytes
        self.best = self.empty = self.read = np.inf

    def turn(self, x: Any, plain: Any) -> None:
        """One more of each: the product, the call without panels, the read."""
        mine = plain[: self.size // 4]
        self.best = min(self.best, self._seconds(x, self.weight.panels))
        self.empty = min(self.empty, self._seconds(x, 0))
        begin = time.thread_time()
        np.dot(mine, mine)
        self.read = min(self.read, time.thread_time() - begin)

    def speed(self) -> Speed:
        count, seconds = SHAPE[0] * SHAPE[1], self.best - self.empty
        return Speed(
            self.name, self.kernel, 8 * self.size / count, self.size / seconds / 1e9,
            self.read / seconds, count / MODEL_WEIGHTS / seconds,
        )  # fmt: skip

    def _seconds(self, x: Any, panels: int) -> float:
        begin = time.thread_time()
        testing.linear(self.isa, self.kernel, self.weight, x, 0, panels)
        return time.thread_time() - begin


def measure(names: Sequence[str], isa: str, repeats: int) -> list[Speed]:
    x = np.random.default_rng(1).standard_normal((1, SHAPE[1]), dtype=np.float32)
    timed = [Timed(name, isa) for name in names]
    plain = np.ones(max(one.size for one in timed) // 4, np.float32)
    for _ in range(repeats):
        for one in timed:
            one.turn(x, plain)
    return [one.speed() for one in timed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=testing.isas()[-1])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("formats", nargs="*", default=FORMATS)
    asked = parser.parse_args()
    speeds = measure(asked.formats, asked.isa, asked.repeats)
    if asked.json:
        print(json.dumps([asdict(speed) for speed in speeds], indent=2))
        return
    print("| format | kernel | bits | GB/s | of a plain read | tok/s of 135M |")
    print("|---|---|---|---|---|---|")
    for s in speeds:
        print(
            f"| {s.format} | {s.kernel.removeprefix('linear_')} | {s.bits:.3f} "
            f"| {s.gigabytes_per_second:.1f} | {s.share_of_read:.0%} | {s.tokens_per_second:.0f} |"
        )


if __name__ == "__main__":
    main()
