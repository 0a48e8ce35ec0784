"""Counts of what casts do, on values chosen by hand and on every fp16."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.formats.casts import CastCounts, count_cast

BY_HAND = {
    # values: overflow, underflow, rounded
    "fp16": ([65504.0, 65519.0, 65520.0, -1e30, 2**-24, 2**-25, 2**-25 * 1.01, 0.1, 1.0, 0.0, -0.0],
             CastCounts(11, 2, 1, 3)),
    "bf16": ([65504.0, 1.0, 1.0 + 2**-8, 3.4e38, 3.4028235e38, 1e-40, 2.0**-133, 2.0**-149, 0.0],
             CastCounts(9, 2, 1, 3)),
    "e4m3": ([448.0, 449.0, -500.0, 2**-9, 2**-10, 0.1, 1.0], CastCounts(7, 2, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("variant", BY_HAND)
def test_by_hand_in_numpy_and_torch(variant: str) -> None:
    values, expected = BY_HAND[variant]
    x = np.array(values, np.float32)
    assert count_cast(x, variant, np) == expected
    assert count_cast(torch.from_numpy(x), variant, torch) == expected


def test_what_fp16_holds_loses_nothing() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = every[np.isfinite(every)]
    assert count_cast(every, "fp16", np) == CastCounts(len(every))
    halves = (every[:-1].astype(np.float64) + every[1:]) / 2  # between neighbours
    between = halves.astype(np.float32)[np.abs(halves) < 65504]
    between = between[(between != 0) & (np.sign(every[:-1]) == np.sign(every[1:]))[: len(between)]]
    found = count_cast(between, "fp16", np)
    assert found.rounded + found.underflow >= 0.99 * len(between)


def test_counts_add_up() -> None:
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    halves = count_cast(x[:4], "bf16", np) + count_cast(x[4:], "bf16", np)
    assert halves == count_cast(x, "bf16", np)
    assert halves.values == 512
