"""Five trits a byte: every byte and every row length, there and back."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from octavo.core.errors import FormatError
from octavo.formats.trits import pack_trits, trits_width, unpack_trits

EVERY = np.array(list(product(range(3), repeat=5)), np.uint8)


def test_all_243_fives_take_a_byte_each_and_come_back() -> None:
    packed = pack_trits(EVERY)
    assert packed.shape == (243, 1)
    assert sorted(packed[:, 0].tolist()) == list(range(243))
    assert (unpack_trits(packed, 5) == EVERY).all()


def test_the_first_trit_is_the_lowest_digit() -> None:
    assert pack_trits(np.array([[1, 0, 0, 0, 0, 2]], np.uint8)).tolist() == [[1, 2]]
    assert pack_trits(np.array([[0, 0, 0, 0, 2]], np.uint8)).tolist() == [[162]]


@pytest.mark.parametrize("n", range(1, 17))
def test_rows_of_any_length_come_back(n: int) -> None:
    trits = np.random.default_rng(n).integers(0, 3, (7, n), np.uint8)
    packed = pack_trits(trits)
    assert packed.shape == (7, trits_width(n))
    assert packed.dtype == np.uint8
    assert (unpack_trits(packed, n) == trits).all()
    assert (unpack_trits(packed[2:4], n) == trits[2:4]).all()


@pytest.mark.parametrize("byte", range(243, 256))
def test_a_byte_of_no_five_trits_is_refused(byte: int) -> None:
    with pytest.raises(FormatError, match=f"byte of {byte}"):
        unpack_trits(np.array([[0, byte]], np.uint8), 10)
