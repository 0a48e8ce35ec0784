"""What GPTQ and AWQ save at 3 bits: mean KL over that of round to nearest, per calibration seed.

All in groups of 64 with zero points, embedding and head in 8 bits, on the same held-out tokens.
A ratio's interval divides the ends of the two 95 % intervals of the means: wide on purpose.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from octavo.compress.job import compress, read_material
from octavo.compress.recipe import Calibration, Recipe, from_flags
from octavo.io.hub import resolve_model

FORMAT = "int3_g64_asym"
OUTSIDE = (("embed", "int8_g32"), ("head", "int8_g32"))
METHODS = ("gptq", "awq")


@dataclass(frozen=True, slots=True)
class Kl:
    """A mean in nats and its 95 % interval."""

    mean: float
    low: float
    high: float

    def over(self, other: Kl) -> Kl:
        return Kl(self.mean / other.mean, self.low / other.high, self.high / other.low)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def measured(model: Path, recipe: Recipe, tokens: int, directory: Path) -> Kl:
    """Compress and measure on the first held-out text."""
    material = read_material(model, recipe, limit=tokens)
    result = compress(model, recipe, directory / f"{recipe.digest()[:12]}", material)
    assert result.quality is not None
    kl = result.quality.texts[0][1].kl_mean
    return Kl(kl.value, kl.low, kl.high)


def run(model: Path, arguments: argparse.Namespace, directory: Path) -> dict[str, object]:
    calibration = Calibration(arguments.text, arguments.sequences, arguments.length)
    rtn = from_flags("rtn", FORMAT, OUTSIDE, calibration)
    nearest = measured(model, rtn, arguments.tokens, directory)
    print(f"rtn                KL {nearest}", flush=True)
    found: dict[str, object] = {"rtn": nearest.mean}
    for method in METHODS:
        for seed in arguments.seeds:
            recipe = replace(from_flags(method, FORMAT, OUTSIDE, calibration), seed=seed)
            kl = measured(model, recipe, arguments.tokens, directory)
            print(f"{method:10} seed {seed}  KL {kl}  over rtn {kl.over(nearest)}", flush=True)
            found[f"{method} {seed}"] = kl.mean
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", default="", help="UTF-8 file (default: Wikipedia)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=4096, help="held out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = run(resolve_model(arguments.model), arguments, Path(directory))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
