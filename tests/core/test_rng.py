from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.rng import Words, philox, philox_array, uniform, uniform_array

# Known answers published with Random123 (philox4x32, 10 rounds): counter, key, block.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_known_answers(counter, key, block):
    assert philox(Words(*counter), key) == block
    counters, keys = np.array([counter], np.uint32), np.array([key], np.uint32)
    assert philox_array(counters, keys).tolist() == [list(block)]


WORD = st.integers(0, 2**32 - 1)


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_scalar_and_array_agree(counter, key):
    array = philox_array(np.array([counter], np.uint32), np.array([key], np.uint32))
    assert tuple(array[0].tolist()) == philox(Words(*counter), key)


def test_uniform_is_built_as_the_page_says():
    """Key = seed, low word first; counter = (position, choice, kind, 0); 53 bits of x0 and x1."""
    seed = (0xBBBBBBBB << 32) | 0xAAAAAAAA
    block = philox(Words(7, 3, 1, 0), (0xAAAAAAAA, 0xBBBBBBBB))
    assert uniform(seed, 7, 3, 1) == (block.x0 * 2**21 + (block.x1 >> 11)) / 2**53


@given(st.integers(0, 2**64 - 1), st.lists(WORD, min_size=1, max_size=5), st.integers(0, 127))
def test_uniform_array_equals_uniform(seed, positions, choice):
    expected = [uniform(seed, position, choice) for position in positions]
    assert uniform_array(seed, positions, choice).tolist() == expected


def test_every_part_of_the_key_matters():
    draws = {uniform(1, 5), uniform(2, 5), uniform(1 << 32, 5), uniform(1, 6), uniform(1, 5, 1),
             uniform(1, 5, 0, 1)}  # fmt: skip
    assert len(draws) == 6


def test_moments_and_range():
    """Mean 1/2 and variance 1/12 within 5 standard errors of n independent draws."""
    n = 100_000
    draws = uniform_array(42, np.arange(n))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(draws.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    lagged = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(lagged) < 5 / n**0.5
