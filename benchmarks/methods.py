"""Mean KL that each compression method costs on one small model: what `octavo methods` prints.

    python benchmarks/methods.py [MODEL] [--name WORDS] [--sequences N] [--length L] [--tokens N]
                                 [--only M ...]

Writes src/octavo/compress/measured.json row by row; rows that are there under the same conditions
aren't measured again, so that a run that was stopped goes on. Transforms, pruners and trainers go
with the encoder that `octavo compress --method` gives them.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from dataclasses import replace
from pathlib import Path
from time import process_time

from rows import Rows

from octavo.compress.catalogue import MEASURED, Described, described
from octavo.compress.job import Material, compress, read_material
from octavo.compress.quality import measure
from octavo.compress.recipe import Calibration, Recipe, from_flags
from octavo.io.hub import resolve_model

_COSTLY = ("learned", "trained")  # minutes each: last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--name", default="", help="what the record calls the model")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--only", nargs="+", default=[], help="these, measured anew")
    parser.add_argument("--out", type=Path, default=MEASURED)
    wanted = parser.parse_args()
    calibration = Calibration(sequences=wanted.sequences, length=wanted.length)
    path = resolve_model(wanted.model)
    material = read_material(path, _recipe("gptq", "int4_g64", calibration), limit=wanted.tokens)
    material = replace(material, held_out=material.held_out[:1])
    rows = Rows(
        wanted.out,
        "methods",
        {
            "model": wanted.name or Path(wanted.model).name,
            "calibration": f"wikipedia, {wanted.sequences} sequences of {wanted.length}",
            "text": f"{material.held_out[0].name}, {wanted.tokens} tokens",
        },
        {"date": datetime.datetime.now(datetime.timezone.utc).date().isoformat()},
    )
    for method in sorted(described(), key=lambda each: each.choice in _COSTLY):
        if method.name not in wanted.only if wanted.only else method.name in rows:
            continue
        begin = process_time()
        rows.add(method.name, _measured(method, path, calibration, material))
        print(method.name, f"{process_time() - begin:.1f} CPU s", flush=True)


def _recipe(method: str, format: str, calibration: Calibration) -> Recipe:
    return from_flags(method, format, (), calibration)


def _measured(
    method: Described, path: Path, calibration: Calibration, material: Material
) -> dict[str, object]:
    recipe = _recipe(method.name, method.format, calibration)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        result = compress(path, recipe, out, Material(material.tokens, (), material.name))
        [(_, report)] = measure(out, path, material.held_out).texts
    kl = report.kl_mean
    return {
        "format": method.format,
        "steps": [step.method for step in recipe.steps],
        "bits": round(result.report.bits_per_weight, 3),
        "kl": round(kl.value, 5),
        "low": round(kl.low, 5),
        "high": round(kl.high, 5),
    }


if __name__ == "__main__":
    main()
