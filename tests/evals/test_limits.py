"""Sizes, counts and figures of the measured limits, on a made-up machine."""

from __future__ import annotations

import dataclasses

from octavo.cli.limits import limit_rows
from octavo.core.hardware import Cache, probe
from octavo.evals.limits import measure_limits, read_sizes, sample, spread, thread_counts

KB, MB = 1 << 10, 1 << 20
CACHES = (
    Cache(1, "Data", 32 * KB, 1),
    Cache(1, "Instruction", 32 * KB, 1),
    Cache(2, "Unified", MB, 1),
    Cache(3, "Unified", 32 * MB, 8),
)


def test_buffers_stay_in_the_level_they_are_for() -> None:
    machine = dataclasses.replace(probe(), caches=CACHES)
    assert read_sizes(machine, 2) == {"L2": MB, "L3": 16 * MB, "memory": 128 * MB}
    # with eight threads every part of half an L3 is still two L2
    assert read_sizes(machine, 8)["L3"] == 16 * MB
    # with sixteen it would be served by the L2
    assert set(read_sizes(machine, 16)) == {"L2", "memory"}


def test_an_unknown_cache_is_left_out() -> None:
    machine = dataclasses.replace(probe(), caches=())
    assert read_sizes(machine, 2) == {"memory": 64 * MB}


def test_thread_counts_double_up_to_what_is_usable() -> None:
    assert [thread_counts(n) for n in (1, 2, 3, 4, 6)] == [
        (1,), (1, 2), (1, 2, 3), (1, 2, 4), (1, 2, 4, 6),
    ]  # fmt: skip


def test_samples_keep_every_probe() -> None:
    values = iter([4.0, 1.0, 2.0])
    found = sample(lambda: next(values), count=3)
    assert (found.median, found.best, found.spread) == (2.0, 4.0, 1.5)
    assert found.probes == (4.0, 1.0, 2.0)
    values = iter([4.0, 1.0])
    assert sample(lambda: next(values), count=2, low=True).best == 1.0
    assert spread((3.0,)) == 0.0


def test_one_round_on_this_machine_has_every_limit() -> None:
    machine = dataclasses.replace(probe(), caches=CACHES[:3])
    limits = measure_limits(machine, probes=1)
    assert {r.level for r in limits.reads} == {"L2", "memory"}
    assert len(limits.peaks) == 3 * len(thread_counts(machine.threads))
    assert all(r.rate.best > 0 for r in limits.reads)
    rows = limit_rows(limits)
    assert {row[4] for row in rows} >= {"GB/s", "Gop/s", "GHz"}
    assert ("barrier" in {row[0] for row in rows}) == (machine.threads > 1)
