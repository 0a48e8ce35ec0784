"""Prefill and decode speed of an executor, as llama-bench defines its tests.

pp N      a prompt of N random tokens, one next token wanted.
tg N      N single-token steps, each fed the token that the last one chose.
@ dD      the same behind a context of D tokens, whose prefill is not timed.

Tests and probes of the machine's limits alternate repetition by repetition, so that a neighbour's
noise hits all. Where the memory probes of a run differ by more than 15 % the machine was not
steady: the run is repeated, twice at most; the steadiest is kept, and says so if it is not steady.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from octavo.backends.base import WANT_TOKEN, Executor, StageTimed, StageTimes
from octavo.core.errors import UserError
from octavo.evals.bandwidth import Bandwidth, Probe, read_bandwidth
from octavo.evals.limits import Kind, spread
from octavo.evals.roofline import Roofs, Share, arithmetic_peaks, share, work
from octavo.evals.scorer import SingleSequence

if TYPE_CHECKING:
    from octavo.backends.base import Receipt

Clock = Callable[[], float]
Peaks = Callable[["Receipt"], dict[Kind, float]]
STEADY = 0.15  # spread of the memory probes of a run, at most
ATTEMPTS = 3


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
    """Speeds in the order of the tests, and the probes of every repetition: memory, arithmetic.

    attempts: runs made until one was steady, or there were enough.
    """

    speeds: tuple[Speed, ...]
    bandwidth: tuple[Bandwidth, ...]
    peaks: tuple[dict[Kind, float], ...] = ()
    attempts: int = 1

    @property
    def spread(self) -> float:
        """Of the memory probes: (largest - smallest) / median."""
        return spread(tuple(probe.bytes_per_second for probe in self.bandwidth))

    @property
    def steady(self) -> bool:
        return self.spread <= STEADY

    def roofs(self) -> Roofs:
        """Medians of the probes."""
        memory = statistics.median(probe.bytes_per_second for probe in self.bandwidth)
        kinds = self.peaks[0] if self.peaks else {}
        peaks = {kind: statistics.median(found[kind] for found in self.peaks) for kind in kinds}
        return Roofs(memory, tuple(peaks.items()))


def speed_share(result: BenchResult, test: SpeedTest, receipt: Receipt, step: int) -> Share:
    """The median speed of a test as a share of the limits; `step`: rows of a step at most."""
    speed = next(speed for speed in result.speeds if speed.test == test.name)
    rows = min(test.prompt, step) if test.prompt else 1
    return share(statistics.median(speed.samples), work(receipt, rows), result.roofs())


def speed_tests(prompt: int, generate: int, depth: int = 0) -> tuple[SpeedTest, ...]:
    """The tests of `-p`, `-n` and `-d`. Raises UserError when both counts are 0."""
    wanted = [SpeedTest(prompt=prompt, depth=depth)] if prompt else []
    wanted += [SpeedTest(generate=generate, depth=depth)] if generate else []
    if not wanted:
        raise UserError("nothing to measure: give -p or -n above 0")
    return tuple(wanted)


@dataclass(frozen=True, slots=True)
class Instruments:
    """What a measurement reads besides the tests."""

    probe: Probe = read_bandwidth
    peaks: Peaks = arithmetic_peaks
    clock: Clock = time.perf_counter


def measure(
    executor: Executor,
    wanted: Sequence[SpeedTest],
    repetitions: int,
    instruments: Instruments | None = None,
) -> BenchResult:
    """One warm-up of each test, then `repetitions` rounds, all again while the machine is unsteady.

    Raises UserError beyond the context.
    """
    tools = instruments or Instruments()
    sequence = SingleSequence(executor)
    prompt = _random_tokens(executor, max(t.depth + t.tokens for t in wanted))
    for test in wanted:
        run(sequence, test, prompt, tools.clock)
    results: list[BenchResult] = []
    while len(results) < ATTEMPTS and not (results and results[-1].steady):
        results.append(_rounds(sequence, wanted, prompt, repetitions, tools))
    best = min(results, key=lambda result: result.spread)
    return replace(best, attempts=len(results))


def _rounds(
    sequence: SingleSequence,
    wanted: Sequence[SpeedTest],
    prompt: Sequence[int],
    repetitions: int,
    tools: Instruments,
) -> BenchResult:
    receipt = sequence.executor.receipt()
    runs: list[list[Run]] = [[] for _ in wanted]
    probes: list[Bandwidth] = []
    peaks: list[dict[Kind, float]] = []
    for _ in range(repetitions):
        for test, done in zip(wanted, runs, strict=True):
            done.append(run(sequence, test, prompt, tools.clock))
        probes.append(tools.probe(receipt.bytes_per_token, receipt.threads))
        peaks.append(tools.peaks(receipt))
    speeds = tuple(_speed(test, done) for test, done in zip(wanted, runs, strict=True))
    return BenchResult(speeds, tuple(probes), tuple(peaks))


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
