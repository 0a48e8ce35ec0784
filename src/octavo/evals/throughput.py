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

from octavo.backends.base import WANT_TOKEN, Executor, StageTimed, StageTimes
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
    """Tokens per second of every repetition, and where the time of each went (as far as the
    executor keeps stage times)."""

    test: str
    samples: tuple[float, ...]
    stages: tuple[StageTimes, ...] = ()

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
    runs: list[list[Run]] = [[] for _ in wanted]
    probes: list[Bandwidth] = []
    for _ in range(repetitions):
        for test, done in zip(wanted, runs, strict=True):
            done.append(run(sequence, test, prompt, clock))
        probes.append(probe(receipt.bytes_per_token, receipt.threads))
    speeds = tuple(_speed(test, done) for test, done in zip(wanted, runs, strict=True))
    return BenchResult(speeds, tuple(probes))


@dataclass(frozen=True, slots=True)
class Run:
    """One repetition."""

    seconds: float
    stages: StageTimes | None = None  # None: the executor keeps none


def run(sequence: SingleSequence, test: SpeedTest, prompt: Sequence[int], clock: Clock) -> Run:
    """One test, from an empty context; the prefill of its depth is not counted."""
    sequence.restart()
    if test.depth:
        sequence.pass_over(prompt[: test.depth])
    executor = sequence.executor
    before = executor.stage_times() if isinstance(executor, StageTimed) else None
    begin = clock()
    if test.prompt:
        sequence.prefill(prompt[test.depth : test.depth + test.prompt])
    else:
        generate(sequence, prompt[test.depth], test.generate)
    seconds = clock() - begin
    if before is None or not isinstance(executor, StageTimed):
        return Run(seconds)
    return Run(seconds, executor.stage_times().since(before))


def _speed(test: SpeedTest, runs: Sequence[Run]) -> Speed:
    stages = tuple(run.stages for run in runs if run.stages is not None)
    return Speed(test.name, tuple(test.tokens / run.seconds for run in runs), stages)


def stage_milliseconds(speed: Speed) -> dict[str, float]:
    """Of the fastest repetition, each stage's ms per token: the mean over the threads, so that the
    stages, "wait" among them, add up to the time of a token. {} where no stage times were kept."""
    if not speed.stages:
        return {}
    fastest = max(range(len(speed.samples)), key=lambda i: speed.samples[i])
    times = speed.stages[fastest]
    spent = [sum(column) for column in zip(*times.seconds, strict=True)]
    scale = 1e3 / speed.samples[fastest] / max(sum(spent), 1e-12)
    return {name: part * scale for name, part in zip(times.stages, spent, strict=True)}


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
