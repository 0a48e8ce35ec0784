"""How an engine does, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.engine.prefixes import Prefixes
from octavo.engine.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class EngineStats:
    """running, waiting: sequences. kv_usage: share of blocks in use, of the fullest group.
    preemptions: since the start. prefix_queried, prefix_hit: tokens since the start. pins: prefixes
    held for a time; pins_refused: marks that found no room."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    preemptions: int = 0
    prefix_queried: int = 0
    prefix_hit: int = 0
    pins: int = 0
    pins_refused: int = 0


def read_stats(scheduler: Scheduler, prefixes: Prefixes | None) -> EngineStats:
    usage = max(1 - pool.free / max(pool.n_blocks, 1) for pool in scheduler.pool.groups)
    if prefixes is None:
        return EngineStats(scheduler.running, scheduler.waiting, usage, scheduler.preemptions)
    cache = prefixes.cache
    return EngineStats(
        scheduler.running,
        scheduler.waiting,
        usage,
        scheduler.preemptions,
        cache.queried,
        cache.hit,
        len(cache.pins),
        prefixes.refused,
    )
