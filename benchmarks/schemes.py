"""W4A16, W8A16, W4A8 and W8A8 with every kind of activation scale: KL on the calibration text and
on a shifted text, and speed.

    python benchmarks/schemes.py [MODEL] [--tokens N] [--sequences N] [--length L] [--json]

Weights are rounded to nearest in groups of 32. KL is against the model in its own formats. Speed is
native decoding as a multiple of bf16 weights' with bf16 activations, in turn, the median of the
ratios; schemes without a native kernel run on the reference decoder, and have none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

from octavo.backends.base import ActivationFormat, Executor, RuntimeConfig
from octavo.compress.job import CODE, Material, compress, read_material
from octavo.compress.quality import HeldOut, windows_of
from octavo.compress.recipe import Calibration, from_flags
from octavo.engine.loading import load_executor, only_reference
from octavo.evals.divergence import divergence
from octavo.evals.scorer import ExecutorScorer, SingleSequence
from octavo.evals.throughput import SpeedTest, run
from octavo.io.checkpoint import open_model
from octavo.io.hub import resolve_model

CONTEXT, ROUNDS = 256, 7
SCHEMES: tuple[tuple[str, str, ActivationFormat, str], ...] = (
    ("W4A16", "int4_g32", "abf16", "none, bf16 (weight-only)"),
    ("W4A16", "int4_g32", "a16", "token and group, dynamic"),
    ("W8A16", "int8_g32", "abf16", "none, bf16 (weight-only)"),
    ("W8A16", "int8_g32", "a16", "token and group, dynamic"),
    *((f"W{bits}A8", f"int{bits}_g32", scheme, words) for bits in (4, 8) for scheme, words in (
        ("a8", "token and group, dynamic"), ("a8_token", "token, dynamic"),
        ("a8_tensor", "tensor, dynamic (not batch-invariant)"), ("a8_static", "tensor, static"),
    )),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """KL in nats: (mean, low, high). `speed` is None where no native kernel runs."""

    scheme: str
    weights: str
    activations: str
    scales: str
    backend: str
    calibrated: tuple[float, float, float]
    shifted: tuple[float, float, float]
    speed: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    path = resolve_model(wanted.model)
    calibration = Calibration(sequences=wanted.sequences, length=wanted.length)
    recipe = replace(from_flags("rtn", "int8_g32", (), calibration), activations="a8_static")
    material = read_material(path, recipe, limit=wanted.tokens)
    rows = list(_rows(path, material, wanted.tokens, calibration))
    if wanted.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print("| scheme | activations | scale of | backend | KL, calibration text | KL, code | speed |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        speed = "-" if row.speed is None else f"{row.speed:.2f}"
        print(
            f"| {row.scheme} | `{row.activations}` | {row.scales} | {row.backend} | "
            f"{_words(row.calibrated)} | {_words(row.shifted)} | {speed} |"
        )


def _rows(path: Path, material: Material, count: int, calibration: Calibration) -> Iterator[Row]:
    assert material.tokens is not None
    begin = material.held_out[0].begin
    seen = material.tokens[:, begin is not None :].reshape(-1)[:count].tolist()
    texts = (
        HeldOut("calibration", tuple(seen), begin),
        next(text for text in material.held_out if text.name == CODE),
    )
    with tempfile.TemporaryDirectory() as directory:
        made = {}
        for name in ("int4_g32", "int8_g32"):
            recipe = replace(from_flags("rtn", name, (), calibration), activations="a8_static")
            made[name] = Path(directory) / name
            compress(path, recipe, made[name], Material(material.tokens, (), ""))
        for scheme, weights, activations, scales in SCHEMES:
            yield _row(path, made[weights], texts, (scheme, weights, activations, scales))


def _row(
    source: Path,
    artifact: Path,
    texts: tuple[HeldOut, HeldOut],
    case: tuple[str, str, ActivationFormat, str],
) -> Row:
    scheme, weights, activations, scales = case
    config = RuntimeConfig(context=CONTEXT, max_seqs=1, activations=activations)
    executor = _executor(artifact, config)
    with closing(ExecutorScorer(executor, "")) as ours:
        found = []
        for text in texts:
            plain = _executor(source, RuntimeConfig(context=CONTEXT, max_seqs=1))
            with closing(ExecutorScorer(plain, "")) as base:
                kl = divergence(ours, base, windows_of(text, CONTEXT)).kl_mean
                found.append((kl.value, kl.low, kl.high))
        backend = executor.receipt().backend
    speed = None if only_reference(config) else _speed(source, artifact, config)
    return Row(scheme, weights, activations, scales, backend, found[0], found[1], speed)


def _executor(path: Path, config: RuntimeConfig) -> Executor:
    with open_model(path) as model:
        return load_executor(model.spec, model.source, config)


def _speed(source: Path, artifact: Path, config: RuntimeConfig) -> float:
    """Decoding speed over that of bf16."""
    plain = replace(config, activations="auto", format="bf16")
    test = SpeedTest(generate=16)
    with closing(_executor(source, plain)) as base, closing(_executor(artifact, config)) as ours:
        pair = SingleSequence(base), SingleSequence(ours)
        ratios = []
        for _ in range(ROUNDS):
            before, after = (run(each, test, [1, 2], perf_counter).seconds for each in pair)
            ratios.append(before / after)
    return statistics.median(ratios)


def _words(kl: tuple[float, float, float]) -> str:
    value, low, high = kl
    return f"{value:.5f} ({low:.5f} to {high:.5f})"


if __name__ == "__main__":
    main()
