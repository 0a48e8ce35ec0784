"""How an engine does, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from octavo.engine.pace import Pace
from octavo.engine.prefixes import Prefixes
from octavo.engine.scheduler import Scheduler


class LastStep(NamedTuple):
    """What the last step was. rows: tokens; seconds: in the executor (of several tokens in one
    call: a token's share)."""

    rows: int = 0
    sequences: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """running, waiting: sequences. kv_usage: share of blocks in use, of the fullest group.
    preemptions: since the start. prefix_queried, prefix_hit, prefix_restored: tokens since the
    start, the last those that came from the store. pins: prefixes held for a time; pins_refused:
    marks that found no room. prefill_rows: what a step may have besides its decodes, as chosen from
    the times of the last steps. step_rows, step_sequences, step_seconds: of the last step.
    kv_tokens: what the cache holds."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    preemptions: int = 0
    prefix_queried: int = 0
    prefix_hit: int = 0
    pins: int = 0
    pins_refused: int = 0
    prefix_restored: int = 0
    prefill_rows: int = 0
    step_rows: int = 0
    step_sequences: int = 0
    step_seconds: float = 0.0
    kv_tokens: int = 0


def read_stats(
    scheduler: Scheduler, prefixes: Prefixes | None, pace: Pace, last: LastStep
) -> EngineStats:
    stats = EngineStats(
        running=scheduler.running,
        waiting=scheduler.waiting,
        kv_usage=max(1 - pool.free / max(pool.n_blocks, 1) for pool in scheduler.pool.groups),
        preemptions=scheduler.preemptions,
        prefill_rows=pace.rows,
        step_rows=last.rows,
        step_sequences=last.sequences,
        step_seconds=last.seconds,
    )
    if prefixes is None:
        return stats
    cache = prefixes.cache
    return replace(
        stats,
        prefix_queried=cache.queried,
        prefix_hit=cache.hit,
        pins=len(cache.pins),
        pins_refused=prefixes.refused,
        prefix_restored=prefixes.restored,
    )
