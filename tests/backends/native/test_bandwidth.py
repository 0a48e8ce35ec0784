"""The bandwidth probe reads what it says it reads."""

from __future__ import annotations

import pytest

from octavo import _native


@pytest.mark.parametrize("size", [1, 64, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_speed_is_positive_and_below_a_register_a_nanosecond_a_thread(
    size: int, threads: int
) -> None:
    rate = _native.read_bandwidth(size, threads, 0.0)
    assert 0 < rate < threads * 1e12
