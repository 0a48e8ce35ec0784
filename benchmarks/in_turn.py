"""Decode and prefill of one model under several settings, in turn, behind a context.

python benchmarks/in_turn.py smollm2-135m --format int4_g32 --depth 4000 kv_format=bf16 \
    kv_format=kivi2 kv_format=kivi4 kv_format=fp8_e4m3 kv_format=int8

A setting is FIELD=VALUE of RuntimeConfig, several joined by "+". Every executor is filled to the
depth; then each in turn takes a few tokens one by one, and a chunk of a prompt, both again and
again from that depth. Printed: the smallest time of each, and the first setting's over it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace

import numpy as np

from octavo.backends.base import WANT_TOKEN, RuntimeConfig
from octavo.backends.native.backend import load
from octavo.evals.scorer import SingleSequence
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.hub import resolve_model


@dataclass(frozen=True, slots=True)
class Found:
    """Milliseconds of a token and of a row of prefill; the first setting's over these."""

    setting: str
    bytes_per_token: int  # of weights
    kv_bytes: int  # of a token in the cache
    decode_ms: float
    prefill_ms: float
    decode: float
    prefill: float


class Runner:
    """One setting's executor at the depth."""

    def __init__(self, model: OpenModel, setting: str, config: RuntimeConfig) -> None:
        fields = dict(pair.split("=", 1) for pair in setting.split("+") if pair)
        self.setting = setting
        self.executor = load(model.spec, model.source, replace(config, **fields))
        self.sequence = SingleSequence(self.executor)
        self.decode = self.prefill = float("inf")

    def at(self, depth: int, tokens: list[int], each: int) -> float:
        """Seconds of appending tokens behind `depth`, `each` a step."""
        self.sequence.length = depth
        begin = time.perf_counter()
        for start in range(0, len(tokens), each):
            self.sequence.step(tokens[start : start + each], WANT_TOKEN, last=True)
        return time.perf_counter() - begin


def measure(runners: list[Runner], depth: int, asked: argparse.Namespace) -> list[Found]:
    vocab = runners[0].executor.spec.vocab
    draws = np.random.default_rng(0)
    past = draws.integers(0, vocab, depth).tolist()
    few = draws.integers(0, vocab, asked.tokens).tolist()
    chunk = draws.integers(0, vocab, asked.chunk).tolist()
    for runner in runners:
        runner.sequence.pass_over(past)
    for turn in range(asked.rounds):
        for runner in runners:
            runner.decode = min(runner.decode, runner.at(depth, few, 1) / len(few))
            if chunk and turn < asked.prefills:
                runner.prefill = min(runner.prefill, runner.at(depth, chunk, len(chunk)))
    return [_found(runner, runners[0], max(1, len(chunk))) for runner in runners]


def _found(mine: Runner, first: Runner, chunk: int) -> Found:
    receipt = mine.executor.receipt()
    return Found(
        mine.setting, receipt.bytes_per_token, receipt.kv_bytes_per_token, 1e3 * mine.decode,
        1e3 * mine.prefill / chunk, first.decode / mine.decode, first.prefill / mine.prefill,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--format", default="source")
    parser.add_argument("--depth", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=6, help="decoded in a turn")
    parser.add_argument("--chunk", type=int, default=256, help="rows of prefill; 0: none")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prefills", type=int, default=4, help="rounds with a prefill")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    room = asked.depth + max(asked.chunk, asked.tokens)
    config = RuntimeConfig(
        format=asked.format, context=room, kv_tokens=room, max_seqs=1, threads=asked.threads,
        max_tokens=max(256, asked.chunk),
    )  # fmt: skip
    with open_model(resolve_model(asked.model)) as model:
        runners = [Runner(model, setting, config) for setting in asked.settings]
        found = measure(runners, asked.depth, asked)
    if asked.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return
    print(
        "| setting | KV bytes | decode ms | prefill ms a row | decode | prefill |\n"
        + "|---" * 6
        + "|"
    )
    for row in found:
        print(
            f"| `{row.setting}` | {row.kv_bytes} | {row.decode_ms:.2f} | {row.prefill_ms:.3f} "
            f"| {row.decode:.2f} | {row.prefill:.2f} |"
        )


if __name__ == "__main__":
    main()
