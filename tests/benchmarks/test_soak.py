"""What the soak calls growth: a leak is, memory that comes and goes is not."""

from __future__ import annotations

import random

import pytest
import soak


def points(slope: float) -> list[dict[str, int]]:
    rng = random.Random(0)
    warm = [1 - 0.5**i for i in range(1, 6)] + [1.0] * 16
    return [
        {"server": round(1e8 * (share * (1 + slope * i / 20) + rng.uniform(-0.02, 0.02)))}
        for i, share in enumerate(warm)
    ]


@pytest.mark.parametrize(("slope", "leaks"), [(0.0, False), (0.1, True)])
def test_growth_tells_a_leak_from_noise(slope, leaks):
    assert (soak._growth(points(slope))["server"] > soak._TOLERANCE) is leaks
