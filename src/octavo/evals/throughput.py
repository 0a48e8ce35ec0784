"""Prefill and decode speed of an executor, as llama-bench defines its tests.

pp N      a prompt of N random tokens, one next token wanted.
tg N      N single-token steps, each fed the token that the last one chose.
@ dD      the same behind a context of D tokens, whose prefill is not timed.

Tests and the memory probe alternate repetition by repetition, so that a neighbour's noise hits all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.backends.base import WANT_TOKEN, Executor
from octavo.core.errors import UserError
from octavo.evals.bandwidth import Bandwidth, read_bandwidth
from octavo.evals.scorer import SingleSequence

Clock = Callable[[], float]
Probe = Callable[[int, int], Bandwidth]


@dataclass(frozen=True, slots=True)
class SpeedTest:
    """Exactly one of prompt and generate is above 0."""

    prompt: int = 0
    generate: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        base = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        return f"{base} @ d{self.depth}" if self.depth else base

    @property
    def tokens(self) -> int:
        return self.prompt or self.generate


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of every repetition."""

    test: str
    samples: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        """Sample standard deviation; 0 of a single repetition."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Speeds in the order of the tests, and the memory probe of every repetition."""

    speeds: tuple[Speed, ...]
    bandwidth: tuple[Bandwidth, ...]


def speed_tests(prompt: int, generate: int, depth: int = 0) -> tuple[SpeedTest, ...]:
    """The tests of `-p`, `-n` and `-d`. Raises UserError when both counts are 0."""
    wanted = [SpeedTest(prompt=prompt, depth=depth)] if prompt else []
    wanted += [SpeedTest(generate=generate, depth=depth)] if generate else []
    if not wanted:
        raise UserError("nothing to measure: give -p or -n above 0")
    return tuple(wanted)


def measure(
    executor: Executor,
    wanted: Sequence[SpeedTest],
    repetitions: int,
    probe: Probe = read_bandwidth,
    clock: Clock = time.perf_counter,
) -> BenchResult:
    """One warm-up of each test, then `repetitions` rounds. Raises UserError beyond the context."""
    receipt = executor.receipt()
    sequence = SingleSequence(executor)
    prompt = _random_tokens(executor, max(t.depth + t.tokens for t in wanted))
    for test in wanted:
        run(sequence, test, prompt, clock)
    samples: list[list[float]] = [[] for _ in wanted]
    probes: list[Bandwidth] = []
    for _ in range(repetitions):
        for test, rates in zip(wanted, samples, strict=True):
            rates.append(test.tokens / run(sequence, test, prompt, clock))
        probes.append(probe(receipt.bytes_per_token, receipt.threads))
    speeds = tuple(Speed(t.name, tuple(s)) for t, s in zip(wanted, samples, strict=True))
    return BenchResult(speeds, tuple(probes))


def run(sequence: SingleSequence, test: SpeedTest, prompt: Sequence[int], clock: Clock) -> float:
    """Seconds of one test, from an empty context; the prefill of its depth is not counted."""
    sequence.restart()
    if test.depth:
        sequence.pass_over(prompt[: test.depth])
    begin = clock()
    if test.prompt:
        sequence.prefill(prompt[test.depth : test.depth + test.prompt])
    else:
        generate(sequence, prompt[test.depth], test.generate)
    return clock() - begin


def generate(sequence: SingleSequence, token: int, count: int) -> list[int]:
    """`count` greedy tokens, one step each."""
    chosen: list[int] = []
    for _ in range(count):
        token = int(sequence.step((token,), WANT_TOKEN).token[0])
        chosen.append(token)
    return chosen


def _random_tokens(executor: Executor, count: int) -> list[int]:
    """The same for every run; repeated text could flatter a cache."""
    draws = np.random.Generator(np.random.Philox(0))
    return [int(t) for t in draws.integers(0, executor.spec.vocab, count)]
