"""Half of the weights of a model's blocks become zeros: what that costs by each method.

python examples/prune_half.py [MODEL] [TEXT.txt] [--code] [--sequences 16] [--length 512]

Prunes only (what stays is bf16, or what the method moves it to), any weight and 2:4, by magnitude,
Wanda and SparseGPT. Half of the text calibrates, the other half measures, natively; without a
text, articles of Wikipedia do. With --code even modules of Python's standard library calibrate and
odd ones measure. Prints a table; fails unless dense < SparseGPT, Wanda < magnitude.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from octavo.compress.job import compress, read_material
from octavo.compress.pruning import pruned_recipe
from octavo.compress.recipe import Calibration, Recipe
from octavo.evals.divergence import DivergenceReport
from octavo.io.corpora import stdlib_code
from octavo.io.hub import resolve_model

METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERNS = ("0.5", "2:4")


def recipe(method: str, pattern: str, text: Calibration, seed: int = 0) -> Recipe:
    """Prune the blocks; embedding and head stay."""
    made = pruned_recipe(f"{method}:{pattern}", None, "bf16", (("head", "bf16"),))
    return Recipe(made.steps, fallback="none", calibration=text, seed=seed)


def measured(model: Path, made: Recipe, tokens: int, code: bool) -> DivergenceReport:
    """What the held-out half of the text says of the pruned model, or the odd modules."""
    material = read_material(model, made, limit=tokens)
    material = replace(material, held_out=material.held_out[int(code) :][:1])
    with tempfile.TemporaryDirectory() as directory:
        result = compress(model, made, Path(directory) / "pruned", material)
    assert result.quality is not None
    return result.quality.texts[0][1]


def row(method: str, pattern: str, found: DivergenceReport) -> str:
    ppl, kl = found.perplexity, found.kl_mean
    return (
        f"| {method} | {pattern} | {ppl.value:.2f} ({ppl.low:.2f} to {ppl.high:.2f}) | "
        f"{kl.value:.3f} ({kl.low:.3f} to {kl.high:.3f}) | {found.same_top.value:.1%} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("text", nargs="?", default="")
    parser.add_argument("--code", action="store_true")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--patterns", default=",".join(PATTERNS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if asked.code:
            asked.text = str(Path(scratch) / "even-modules.py")
            Path(asked.text).write_text(stdlib_code("calibration"), encoding="utf-8")
        return compare(asked, Calibration(asked.text, asked.sequences, asked.length))


def compare(asked: argparse.Namespace, text: Calibration) -> int:
    model = resolve_model(asked.model)
    print("| method | pattern | perplexity | mean KL | same top token |\n|---|---|---|---|---|")
    in_order = True
    for pattern in asked.patterns.split(","):
        found: dict[str, DivergenceReport] = {}
        for m in METHODS:
            found[m] = measured(model, recipe(m, pattern, text), asked.tokens, asked.code)
            print(row(m, pattern, found[m]), flush=True)
        dense = found["magnitude"].base_perplexity
        print(f"| dense | | {dense.value:.2f} ({dense.low:.2f} to {dense.high:.2f}) | | |")
        ours = [found[m].perplexity.value for m in ("sparsegpt", "wanda")]
        worst = found["magnitude"].perplexity.value
        in_order &= dense.value < min(ours) and max(ours) < worst
    print("in the expected order" if in_order else "NOT in the expected order")
    return 0 if in_order else 1


if __name__ == "__main__":
    sys.exit(main())
