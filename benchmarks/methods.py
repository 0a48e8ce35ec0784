"""Mean KL that each compression method costs on one small model: what `octavo methods` prints.

    python benchmarks/methods.py [MODEL] [--sequences N] [--length L] [--tokens N] [--only M ...]

Writes src/octavo/compress/measured.json. Transforms and pruners go with the encoder that
`octavo compress --method` puts behind them. With --only, rows of other methods stay if they were
measured under the same conditions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

from octavo.compress.artifact import write_json
from octavo.compress.catalogue import MEASURED, Described, described
from octavo.compress.job import Material, compress, read_material
from octavo.compress.quality import measure
from octavo.compress.recipe import Calibration, Recipe, from_flags
from octavo.io.hub import resolve_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=MEASURED)
    wanted = parser.parse_args()
    calibration = Calibration(sequences=wanted.sequences, length=wanted.length)
    path = resolve_model(wanted.model)
    gathering = _recipe("gptq", "int4_g64", calibration)
    material = read_material(path, gathering, limit=wanted.tokens)
    content: dict[str, Any] = {
        "model": wanted.model,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "calibration": f"wikipedia, {wanted.sequences} sequences of {wanted.length}",
        "text": f"{material.held_out[0].name}, {wanted.tokens} tokens",
        "methods": {},
    }
    content["methods"] = _kept(wanted.out, content) if wanted.only else {}
    only = Material(material.tokens, material.held_out[:1], material.name)
    for method in described():
        if method.kind == "train" or (wanted.only and method.name not in wanted.only):
            continue
        content["methods"][method.name] = _measured(method, path, calibration, only)
        print(method.name, content["methods"][method.name], flush=True)
        write_json(wanted.out, content)  # what is measured stays, whatever comes


def _kept(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = all(before.get(key) == value for key, value in content.items() if key != "methods")
    return dict(before["methods"]) if same else {}


def _recipe(method: str, format: str, calibration: Calibration) -> Recipe:
    return from_flags(method, format, calibration=calibration)


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
