"""What is timed, and what isn't, with a clock that counts rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import count

import pytest

from octavo.backends.base import KernelUse, Receipt, RuntimeConfig, StageTimes
from octavo.core.errors import UserError
from octavo.evals.bandwidth import Bandwidth, Probe, read_bandwidth
from octavo.evals.limits import Kind
from octavo.evals.scorer import SingleSequence
from octavo.evals.throughput import (
    ATTEMPTS,
    BenchResult,
    Instruments,
    Speed,
    SpeedTest,
    generate,
    measure,
    run,
    speed_share,
    speed_tests,
    stage_milliseconds,
)
from support.fakes import fake_executor

CONFIG = RuntimeConfig(max_tokens=6, max_seqs=1, context=32, block_size=4)


def no_probe(size: int, threads: int) -> Bandwidth:
    return Bandwidth(1e9, size, threads, "made up")


def no_peaks(receipt: Receipt) -> dict[Kind, float]:
    del receipt
    return {"int8": 4e9, "bf16": 2e9, "f32": 1e9}


def made_up(ticks: Iterator[int], probe: Probe = no_probe) -> Instruments:
    return Instruments(probe, no_peaks, lambda: float(next(ticks)))


def test_names_are_llama_benchs() -> None:
    assert [t.name for t in speed_tests(512, 128)] == ["pp512", "tg128"]
    assert [t.name for t in speed_tests(0, 8, 4096)] == ["tg8 @ d4096"]
    assert SpeedTest(prompt=5).tokens == SpeedTest(generate=5).tokens == 5


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(UserError, match="-p or -n"):
        speed_tests(0, 0)


def test_prefill_runs_in_whole_steps_and_depth_is_not_timed() -> None:
    fake = fake_executor(config=CONFIG)
    clock = iter(range(100))
    starts: list[int] = []

    def rows_so_far() -> float:
        starts.append(sum(fake.rows))
        return float(next(clock))

    timed = run(SingleSequence(fake), SpeedTest(prompt=9, depth=7), list(range(7)) * 3, rows_so_far)
    assert fake.rows == [6, 1, 6, 3]
    assert starts == [7, 16]
    assert (timed.seconds, timed.stages) == (1, None)


def test_decode_takes_one_row_a_step_and_feeds_its_own_tokens() -> None:
    fake = fake_executor(config=CONFIG)
    sequence = SingleSequence(fake)
    chosen = generate(sequence, 2, 5)
    assert fake.rows == [1] * 5
    history = [2]
    for token in chosen:
        assert token == int(fake.model.logits(fake.model.views(history)).argmax())
        history.append(token)


def test_every_repetition_gives_a_sample_and_a_probe() -> None:
    fake = fake_executor(config=CONFIG)
    result = measure(fake, speed_tests(4, 2), 3, made_up(count()))
    assert [s.samples for s in result.speeds] == [(4.0,) * 3, (2.0,) * 3]
    assert [b.bytes for b in result.bandwidth] == [8, 8, 8]
    # a warm-up of each, then rounds
    assert fake.rows == [4, 1, 1] * 4


def test_mean_and_sample_deviation() -> None:
    speed = Speed("tg1", (1.0, 2.0, 6.0))
    assert speed.mean == 3
    assert speed.deviation == pytest.approx(statistics.stdev([1, 2, 6]))
    assert Speed("tg1", (4.0,)).deviation == 0


def test_depth_beyond_the_context_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="exceed the context of 32"):
        measure(fake_executor(config=CONFIG), speed_tests(4, 0, 30), 1, made_up(count()))


def probe_of(rates: Iterator[float]) -> Probe:
    return lambda size, threads: Bandwidth(next(rates), size, threads, "made up")


def test_an_unsteady_run_is_repeated_until_one_is_steady() -> None:
    rates = iter([10.0, 8.0, 10.0, 9.0])
    fake = fake_executor(config=CONFIG)
    result = measure(fake, speed_tests(0, 1), 2, made_up(count(), probe_of(rates)))
    assert [b.bytes_per_second for b in result.bandwidth] == [10.0, 9.0]
    assert (result.attempts, result.steady) == (2, True)
    assert fake.rows == [1] * (1 + 2 * 2)


def test_the_steadiest_of_unsteady_runs_is_kept_and_known_as_such() -> None:
    rates = iter([10.0, 5.0, 10.0, 8.0, 10.0, 6.0])
    fake = fake_executor(config=CONFIG)
    result = measure(fake, speed_tests(0, 1), 2, made_up(count(), probe_of(rates)))
    assert [b.bytes_per_second for b in result.bandwidth] == [10.0, 8.0]
    assert (result.attempts, result.steady) == (ATTEMPTS, False)


def test_a_share_is_of_the_limit_that_binds() -> None:
    prompt, decode = SpeedTest(prompt=8), SpeedTest(generate=3)
    use = KernelUse("all", "k", "int8", "a8_g32", 1000, products=10_000)
    receipt = Receipt("fake", "python", 2, "bf16", 1000, 1000, (use,), requantized=False)
    speeds = (Speed("pp8", (1e5,)), Speed("tg3", (1e5,)))
    probes = (Bandwidth(2e8, 1000, 2, "made up"),)
    result = BenchResult(speeds, probes, (no_peaks(receipt),))
    # 20,000 operations at 4e9 a second are 5 us of a token's 10; 1,000 bytes at 2e8 are 5 us
    assert speed_share(result, decode, receipt, 512).memory == pytest.approx(0.5)
    # 250 bytes a token where four rows share a step
    found = speed_share(result, prompt, receipt, 4)
    assert (found.bound, found.value) == ("compute", pytest.approx(0.5))
    assert found.memory == pytest.approx(0.125)


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_probe_reads_at_least_once(threads: int) -> None:
    found = read_bandwidth(1 << 20, threads, seconds=0.0)
    assert found.bytes_per_second > 0
    assert (found.bytes, found.threads) == (1 << 20, threads)


def test_stage_times_are_of_the_fastest_repetition_and_add_up_to_a_token() -> None:
    slow = StageTimes(("o", "wait"), ((9.0, 9.0), (9.0, 9.0)))
    fast = StageTimes(("o", "wait"), ((3.0, 1.0), (2.0, 2.0)))
    speed = Speed("tg8", (10.0, 100.0), (slow, fast))
    assert stage_milliseconds(speed) == pytest.approx({"o": 6.25, "wait": 3.75})
    assert stage_milliseconds(Speed("tg8", (10.0,))) == {}


def test_stage_times_since() -> None:
    before, after = StageTimes(("o",), ((1.0,), (2.0,))), StageTimes(("o",), ((4.0,), (2.5,)))
    assert after.since(before) == StageTimes(("o",), ((3.0,), (0.5,)))
