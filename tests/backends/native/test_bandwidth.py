"""The probes of the machine's limits measure what they say."""

from __future__ import annotations

import pytest

from octavo import _native
from octavo.backends.base import RuntimeConfig
from octavo.evals.limits import KINDS
from support.native_models import llama_like, load_native

ISAS = _native.testing.isas()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 64, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_speed_is_positive_and_below_a_register_a_nanosecond_a_thread(
    isa: str, size: int, threads: int
) -> None:
    rate = _native.MachineProbe(threads, 1, isa).read(size, 0.0)
    assert 0 < rate < threads * 1e12


@pytest.mark.parametrize("isa", ISAS)
def test_a_loop_does_no_more_than_its_instruction_can(isa: str) -> None:
    probe = _native.MachineProbe(1, 1, isa)
    clock = probe.clock(0.002)
    for kind in KINDS:
        assert probe.instruction(kind)
        # at most four instructions a cycle, of at most 128 operations
        assert 0 < probe.peak(kind, 0.0) < 1.5 * clock * 4 * 128


def test_vnni_does_a_register_a_cycle_at_most_two() -> None:
    """The loop holds what it says: a hoisted or stored one would be far off the clock."""
    if "avx512vnni" not in ISAS:
        pytest.skip("no AVX-512 VNNI here")
    probe = _native.MachineProbe(1, 1, "avx512vnni")
    per_cycle = probe.peak("int8", 0.01) / probe.clock(0.01) / 128
    assert 0.3 < per_cycle < 2.5


def test_threads_add_their_rates_and_a_barrier_takes_time() -> None:
    pair = _native.MachineProbe(2, 1)
    assert pair.peak("f32", 0.0) > 0
    assert pair.barrier(0.0) > 0


def test_unknown_words_are_errors() -> None:
    with pytest.raises(ValueError, match="no such ISA"):
        _native.MachineProbe(1, 1, "sse9")
    with pytest.raises(ValueError, match="int8, bf16, f32"):
        _native.MachineProbe(1, 1).peak("int4", 0.0)


def test_an_executor_reads_its_own_weights() -> None:
    executor = load_native(llama_like(), RuntimeConfig(context=16, threads=3))
    once, often = executor.read_weights(1), executor.read_weights(50)
    assert once > 0
    assert often > 0
    executor.close()
