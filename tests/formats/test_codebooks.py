from __future__ import annotations

import numpy as np
import pytest

from octavo.core.errors import FormatError
from octavo.formats import codebooks
from octavo.formats.codebooks import float8_levels, iq4nl_levels, named_levels, nf4_levels
from octavo.formats.number_format import NumberFormat

# QLoRA's table to the digits that methods.md section 2 gives.
NF4 = [
    *(-1, -0.696193, -0.525073, -0.394917, -0.284441, -0.184773, -0.09105, 0),
    *(0.07958, 0.16093, 0.246112, 0.337915, 0.44071, 0.562617, 0.722957, 1),
]


def test_nf4_follows_from_its_definition() -> None:
    np.testing.assert_allclose(nf4_levels(), NF4, atol=5e-7)
    assert nf4_levels()[7] == 0
    assert (nf4_levels()[0], nf4_levels()[15]) == (-1, 1)


def test_iq4nl_is_the_gguf_table() -> None:
    quants = pytest.importorskip("gguf.quants")
    assert iq4nl_levels().tolist() == list(quants.IQ4_NL.kvalues)


@pytest.mark.parametrize("name", ["nf4_g64", "iq4nl_g32"])
def test_levels_ascend_and_are_read_only(name: str) -> None:
    levels = named_levels(NumberFormat.parse(name))
    assert (np.diff(levels) > 0).all()
    assert not levels.flags.writeable


def test_float8_levels_follow_the_bytes() -> None:
    levels = float8_levels("e4m3")
    assert (levels[0x38], levels[0x7E], levels[0xB8], levels[0x01]) == (1, 448, -1, 2**-9)
    assert np.isnan(levels[[0x7F, 0xFF]]).all()
    assert float8_levels("e5m2")[0x7B] == 57344


def test_a_learned_codebook_has_no_levels_of_its_own() -> None:
    with pytest.raises(FormatError, match="learned"):
        named_levels(NumberFormat.parse("lut4_channel"))


def test_levels_that_are_dyadic_integers_are_exact_in_a8() -> None:
    levels = np.array([-127, -0.5, 0, 0.25, 113], np.float32)
    integers, step = codebooks.level_steps(levels)
    assert step == 0.25
    np.testing.assert_array_equal(integers * step, levels)


@pytest.mark.parametrize("seed", range(5))
def test_other_levels_are_off_by_half_a_step_at_most(seed: int) -> None:
    draws = np.random.default_rng(seed)
    levels = (draws.standard_normal(16) * 10.0 ** draws.integers(-9, 9)).astype(np.float32)
    integers, step = codebooks.level_steps(levels)
    peak = np.abs(levels).max()
    assert np.abs(integers).max() <= codebooks.LARGEST_LEVEL16
    error = np.abs(integers * step - levels.astype(np.float64)).max()
    assert error <= step / 2 * (1 + 2.0**-40)  # the quotient is rounded in float64
    assert step / 2 <= peak / (2 * codebooks.LARGEST_LEVEL16) * (1 + 2.0**-23)


def test_an_empty_codebook_has_a_step() -> None:
    integers, step = codebooks.level_steps(np.zeros(16, np.float32))
    assert not integers.any()
    assert step == 1
