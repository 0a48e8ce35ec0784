from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.formats.packing import pack_bits, packed_width, unpack_bits


def _one_by_one(codes: list[int], bits: int) -> bytes:
    """The definition: element i at bit i * bits of one little-endian integer."""
    whole = sum(code << (i * bits) for i, code in enumerate(codes))
    return whole.to_bytes(packed_width(len(codes), bits), "little")


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_at_every_place_of_a_cycle(bits: int) -> None:
    for start in range(8):
        codes = np.roll(np.arange(2**bits, dtype=np.uint8).repeat(2), start)
        packed = pack_bits(codes, bits)
        assert packed.tobytes() == _one_by_one(codes.tolist(), bits)
        np.testing.assert_array_equal(unpack_bits(packed, bits, codes.size), codes)


@given(st.integers(1, 8), st.data())
def test_any_row_comes_back(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70))
    packed = pack_bits(np.array(codes, np.uint8), bits)
    assert packed.tobytes() == _one_by_one(codes, bits)
    assert unpack_bits(packed, bits, len(codes)).tolist() == codes


def test_three_bit_codes_straddle_bytes() -> None:
    packed = pack_bits(np.array([1, 2, 3, 4, 5, 6, 7, 0], np.uint8), 3)
    assert packed.tolist() == [0b11010001, 0b01011000, 0b00011111]


@pytest.mark.parametrize("bits", range(1, 9))
def test_rows_are_packed_alone(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 2, 13)).astype(np.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (3, 2, packed_width(13, bits))
    np.testing.assert_array_equal(packed[1, 1], pack_bits(codes[1, 1], bits))
    np.testing.assert_array_equal(unpack_bits(packed, bits, 13), codes)
