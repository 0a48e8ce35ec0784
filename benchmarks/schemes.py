"""W4A16, W8A16, W4A8 and W8A8 with every kind of activation scale: KL on the calibration text and
on a shifted text, and speed.

    python benchmarks/schemes.py OUT [MODEL] [--name WORDS] [--tokens N] [--sequences N]
                                 [--length L] [--only SCHEME ...] [--no-speed]

OUT is a JSON file that takes each row as it comes; a run that was stopped goes on behind them.
Weights are rounded to nearest in groups of 32. KL is against the model in its own formats. Speed is
native decoding as a multiple of bf16 weights' with bf16 activations, in turn, the median of the
ratios; schemes without a native kernel run on the reference decoder, and have none.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from rows import Rows

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
Case = tuple[str, str, ActivationFormat, str]  # scheme, weights, activations, what shares a scale
SCHEMES: tuple[Case, ...] = (
    ("W4A16", "int4_g32", "abf16", "none, bf16 (weight-only)"),
    ("W4A16", "int4_g32", "a16", "token and group, dynamic"),
    ("W8A16", "int8_g32", "abf16", "none, bf16 (weight-only)"),
    ("W8A16", "int8_g32", "a16", "token and group, dynamic"),
    *((f"W{bits}A8", f"int{bits}_g32", scheme, words) for bits in (4, 8) for scheme, words in (
        ("a8", "token and group, dynamic"), ("a8_token", "token, dynamic"),
        ("a8_tensor", "tensor, dynamic (not batch-invariant)"), ("a8_static", "tensor, static"),
    )),
)  # fmt: skip


Kl = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Row:
    """KL in nats: (mean, low, high). `speed` is None where no native kernel runs."""

    scheme: str
    weights: str
    activations: str
    scales: str
    backend: str
    calibrated: Kl
    shifted: Kl
    speed: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--name", default="", help="what the record calls the model")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--only", nargs="+", default=[], help="such as W4A8/a8_static")
    parser.add_argument("--no-speed", action="store_true")
    wanted = parser.parse_args()
    path = resolve_model(wanted.model)
    calibration = Calibration(sequences=wanted.sequences, length=wanted.length)
    recipe = replace(from_flags("rtn", "int8_g32", (), calibration), activations="a8_static")
    material = read_material(path, recipe, limit=wanted.tokens)
    conditions = {
        "model": wanted.name or Path(wanted.model).name,
        "calibration": f"{material.name}, {wanted.sequences} sequences of {wanted.length}",
        "texts": f"{wanted.tokens} tokens of calibration text, as many of {CODE}",
    }
    rows = Rows(wanted.out, "rows", conditions, {})
    chosen = [case for case in SCHEMES if not wanted.only or _key(case) in wanted.only]
    _measure(path, material, wanted.tokens, calibration, chosen, rows, not wanted.no_speed)
    print(table(rows.in_order(tuple(map(_key, SCHEMES)))))


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a line for each row that was measured."""
    lines = [
        "| scheme | activations | scale of | backend | KL, calibration text | KL, code | speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        speed = "-" if row["speed"] is None else f"{row['speed']:.2f}"
        lines.append(
            f"| {row['scheme']} | `{row['activations']}` | {row['scales']} | {row['backend']} | "
            f"{_words(row['calibrated'])} | {_words(row['shifted'])} | {speed} |"
        )
    return "\n".join(lines)


def _key(case: Case) -> str:
    return f"{case[0]}/{case[2]}"


def _measure(
    path: Path,
    material: Material,
    count: int,
    calibration: Calibration,
    cases: Sequence[Case],
    rows: Rows,
    timed: bool,
) -> None:
    assert material.tokens is not None
    begin = material.held_out[0].begin
    seen = material.tokens[:, begin is not None :].reshape(-1)[:count].tolist()
    code = next(text for text in material.held_out if text.name == CODE)
    texts = HeldOut("calibration", tuple(seen), begin), code
    with tempfile.TemporaryDirectory() as directory:
        for case in cases:
            if _key(case) in rows:
                continue
            made = Path(directory) / case[1]
            if not made.exists():
                recipe = from_flags("rtn", case[1], (), calibration)
                recipe = replace(recipe, activations="a8_static")
                compress(path, recipe, made, Material(material.tokens, (), ""))
            begun = process_time()
            rows.add(_key(case), asdict(_row(path, made, texts, case, timed)))
            print(_key(case), f"{process_time() - begun:.1f} CPU s", flush=True)


def _row(
    source: Path, artifact: Path, texts: tuple[HeldOut, HeldOut], case: Case, timed: bool
) -> Row:
    scheme, weights, activations, scales = case
    config = RuntimeConfig(context=CONTEXT, max_seqs=1, activations=activations)
    executor = _executor(artifact, config)
    with closing(ExecutorScorer(executor, "")) as ours:
        calibrated, shifted = (_kl(ours, source, text) for text in texts)
        backend = executor.receipt().backend
    native = timed and not only_reference(config)
    speed = _speed(source, artifact, config) if native else None
    return Row(scheme, weights, activations, scales, backend, calibrated, shifted, speed)


def _kl(ours: ExecutorScorer, source: Path, text: HeldOut) -> Kl:
    plain = _executor(source, RuntimeConfig(context=CONTEXT, max_seqs=1))
    with closing(ExecutorScorer(plain, "")) as base:
        found = divergence(ours, base, windows_of(text, CONTEXT)).kl_mean
    return found.value, found.low, found.high


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


def _words(kl: Sequence[float]) -> str:
    value, low, high = kl
    return f"{value:.5f} ({low:.5f} to {high:.5f})"


if __name__ == "__main__":
    main()
