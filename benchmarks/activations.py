"""What each format of activations costs in quality and brings in speed, for one model.

    python benchmarks/activations.py MODEL --formats source,int4_g32 [--ratios 8,14] [--json]

KL is against a32 with the same weights and fp32 keys and values on both sides, so nothing but the
rounding of activations differs. Speeds are medians over rounds in
which every format takes its turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

from octavo.backends.base import ActivationFormat, RuntimeConfig
from octavo.backends.native.backend import load
from octavo.backends.native.executor import NativeExecutor
from octavo.cli.scorers import load_tokenizer_of
from octavo.core.errors import UnsupportedError
from octavo.evals.divergence import divergence
from octavo.evals.scorer import ExecutorScorer, SingleSequence
from octavo.evals.throughput import SpeedTest, run
from octavo.evals.windows import Window, split
from octavo.io.checkpoint import open_model
from octavo.io.corpora import Split, wikipedia

KINDS: tuple[ActivationFormat, ...] = ("a32", "a8", "a16", "a8a16", "abf16")
PROMPT, GENERATE = SpeedTest(prompt=128), SpeedTest(generate=16)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One format of weights with one of activations."""

    weights: str
    activations: str
    ratio: float | None  # of a8a16
    wide_share: float
    kl: float
    kl_error: float
    same_top: float
    decode: float  # tokens a second
    prefill: float


def main() -> int:
    arguments = _arguments()
    windows = _windows(arguments.model, arguments.tokens, arguments.split)
    rows = [
        row
        for weights in arguments.formats.split(",")
        for row in _measure(arguments, weights, windows)
    ]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        _print(rows)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--formats", default="source,int4_g32,int8_g32")
    parser.add_argument("--ratios", default="", help="thresholds of a8a16; default: its own")
    parser.add_argument("--tokens", type=int, default=1024, help="of the text that KL is taken on")
    parser.add_argument("--split", choices=("calibration", "evaluation"), default="evaluation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _windows(model: str, tokens: int, half: Split) -> tuple[Window, ...]:
    tokenizer = load_tokenizer_of(model)
    ids = tokenizer.encode(wikipedia(half)[: 8 * tokens], add_special=False)[:tokens]
    begins = tokenizer.encode("a")[:1] == [tokenizer.bos_id]
    return split(ids, 256, bos=tokenizer.bos_id if begins else None)


def _configs(arguments: argparse.Namespace, weights: str) -> list[RuntimeConfig]:
    plain = RuntimeConfig(
        max_seqs=1, context=512, kv_format="fp32", format=weights, threads=arguments.threads
    )
    ratios = [float(word) for word in arguments.ratios.split(",") if word]
    made = [dataclasses.replace(plain, activations=kind) for kind in KINDS]
    if not ratios:
        return made
    mixed = next(config for config in made if config.activations == "a8a16")
    made.remove(mixed)
    return made + [dataclasses.replace(mixed, wide_ratio=ratio) for ratio in ratios]


def _measure(arguments: argparse.Namespace, weights: str, windows: tuple[Window, ...]) -> list[Row]:
    executors = []
    with open_model(Path(arguments.model)) as model:
        for config in _configs(arguments, weights):
            try:
                executors.append((config, load(model.spec, model.source, config)))
            except UnsupportedError as error:
                print(f"{weights} {config.activations}: {error}", file=sys.stderr)
    speeds = _speeds([executor for _, executor in executors], arguments.rounds)
    base = ExecutorScorer(executors[0][1], "a32")
    rows = []
    for (config, executor), (decode, prefill) in zip(executors, speeds, strict=True):
        report = divergence(ExecutorScorer(executor, config.activations), base, windows)
        mixed = config.activations == "a8a16"
        rows.append(
            Row(
                weights,
                config.activations,
                config.wide_ratio if mixed else None,
                executor.receipt().wide_share,
                report.kl_mean.value,
                report.kl_mean.error,
                report.same_top.value,
                decode,
                prefill,
            )
        )
    for _, executor in executors:
        executor.close()
    return rows


def _speeds(executors: list[NativeExecutor], rounds: int) -> list[tuple[float, float]]:
    """Median tokens a second of decoding and of prefill, executors in turn."""
    sequences = [SingleSequence(executor) for executor in executors]
    prompt = list(range(100, 100 + PROMPT.tokens))
    samples: list[tuple[list[float], list[float]]] = [([], []) for _ in executors]
    for turn in range(rounds + 1):
        for sequence, found in zip(sequences, samples, strict=True):
            for test, rates in zip((GENERATE, PROMPT), found, strict=True):
                seconds = run(sequence, test, prompt, time.perf_counter).seconds
                if turn:  # the first is a warm-up
                    rates.append(test.tokens / seconds)
    return [(statistics.median(a), statistics.median(b)) for a, b in samples]


def _print(rows: list[Row]) -> None:
    print(
        "| weights | activations | 16-bit rows | KL | same top | decode, tok/s | prefill, tok/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        name = row.activations if row.ratio is None else f"{row.activations} {row.ratio:g}"
        share = "" if row.ratio is None else f"{row.wide_share:.1%}"
        print(
            f"| {row.weights} | {name} | {share} | {row.kl:.6f} ± {row.kl_error:.6f} "
            f"| {row.same_top:.2%} | {row.decode:.1f} | {row.prefill:.0f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
