"""How many threads a model runs with, when nobody said: measured at load, a few steps each.

A small model does not gain from every core: its stages are too short for the barriers between them,
and one core may already read all that the memory gives. So 1, 2, 4, ... threads up to what the
process may use each run some single-token steps; the shortest step of each counts, since a
neighbour only ever makes one longer. Answers do not depend on the choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from octavo import _native
from octavo.backends.base import WANT_TOKEN, KvLayout, RuntimeConfig, StepBatch
from octavo.backends.native.executor import Results

SECONDS = 0.05  # for all counts together
MOST_STEPS, LEAST_STEPS = 8, 2
WORTH = 1.03  # more threads must make a step shorter by this factor: idle ones serve others
Build = Callable[[int], _native.Executor]


@dataclass(frozen=True, slots=True)
class Choice:
    """The executor of the chosen count, and the shortest step of every count tried, in seconds."""

    native: _native.Executor
    threads: int
    steps: tuple[tuple[int, float], ...]

    def notes(self) -> tuple[str, ...]:
        """What the receipt says; nothing where nothing was measured."""
        if not self.steps:
            return ()
        tried = ", ".join(f"{n}: {seconds * 1e3:.2f} ms" for n, seconds in self.steps)
        which = f"{self.threads} thread{'s' * (self.threads != 1)} chosen at load"
        return (f"{which} by the shortest step of one token ({tried})",)


def counts(usable: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `usable` itself, ascending."""
    powers = [1 << i for i in range(usable.bit_length()) if 1 << i < usable]
    return (*powers, usable)


def choose(build: Build, layout: KvLayout, config: RuntimeConfig, usable: int) -> Choice:
    """An executor of `config.threads` threads, or where that is 0 of the fewest that are within 3 %
    of the fastest. The measured ones are not kept: steps leave counts behind. Raises what `build`
    raises."""
    if config.threads or usable == 1:
        return Choice(build(config.threads or 1), config.threads or 1, ())
    wanted = counts(usable)
    tried = [(n, shortest_step(build(n), layout, config, len(wanted))) for n in wanted]
    threads = pick(tried)
    return Choice(build(threads), threads, tuple(tried))


def pick(tried: list[tuple[int, float]]) -> int:
    """The fewest threads whose step is at most 3 % longer than the shortest."""
    best = min(seconds for _, seconds in tried)
    return next(count for count, seconds in tried if seconds <= best * WORTH)


def shortest_step(
    native: _native.Executor, layout: KvLayout, config: RuntimeConfig, share: int
) -> float:
    """Seconds of the shortest of some steps of one token, after one to warm up."""
    blocks = -(-config.context // layout.block_size)
    batch = StepBatch(layout, config.max_tokens, config.max_seqs, blocks)
    results = Results(config.max_tokens)
    batch.n_seqs, batch.row_start[1], batch.want[0] = 1, 1, WANT_TOKEN
    batch.block_table[:, 0, 0] = 0
    native.bind(batch, results)
    native.step(1, None, None)
    found: list[float] = []
    while len(found) < LEAST_STEPS or (len(found) < MOST_STEPS and sum(found) < SECONDS / share):
        begin = time.perf_counter()
        native.step(1, None, None)
        found.append(time.perf_counter() - begin)
    return min(found)
