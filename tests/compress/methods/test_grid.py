"""A grid rounds as formats/rounding.py does, keeps scales as stored, and knows its zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.compress.methods.grid import Grid
from octavo.core.errors import FormatError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.rounding import conventions_of
from support.number_formats import normal_weight

NAMES = ("int{}_g16", "int{}_g16_asym", "int{}_g16_offset_sbf16", "int{}_channel_sfp32")
NAMES += ("int{}_tensor", "int{}_g16_se4m3", "int{}_g16_si6x32", "int{}_g16_offset_su4x32")
FIXED = ("nf4_g16", "iq4nl_g16", "iq4nl_g16_si6x32", "ternary_channel")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.sampled_from((*NAMES, *FIXED)), st.integers(2, 8), st.integers(0, 99), st.data())
def test_rounds_like_the_format(name: str, bits: int, seed: int, data: st.DataObject) -> None:
    target = NumberFormat.parse(name.format(bits))
    convention = data.draw(st.sampled_from(conventions_of(target)))
    w = normal_weight((5, 32), seed)
    w[0, :16] = 0
    expected, grid = (
        rtn.encode(w, target, convention),
        Grid(torch.from_numpy(w), target, convention),
    )
    columns = [grid.nearest(torch.from_numpy(w[:, i]), i // grid.group) for i in range(32)]
    made = grid.tensor(torch.stack([codes for codes, _ in columns], 1))
    np.testing.assert_array_equal(made.codes, expected.codes)
    values = torch.stack([values for _, values in columns], 1)
    np.testing.assert_array_equal(values.numpy(), expected.dequantize())


@pytest.mark.parametrize("name", [name.format(4) for name in NAMES[:4]] + ["nf4_g16"])
def test_refitting_a_group_is_encoding_it_alone(name: str) -> None:
    w, other = normal_weight((5, 32), 1), normal_weight((5, 32), 2, 0.7)
    target = NumberFormat.parse(name)
    grid, expected = Grid(torch.from_numpy(w), target), rtn.encode(other, target)
    for group in range(32 // grid.group):
        part = slice(group * grid.group, (group + 1) * grid.group)
        grid.refit(group, torch.from_numpy(other[:, part]))
    columns = [grid.nearest(torch.from_numpy(other[:, i]), i // grid.group)[0] for i in range(32)]
    made = grid.tensor(torch.stack(columns, 1))
    for part_name, array in expected.state("w").items():
        np.testing.assert_array_equal(made.state("w")[part_name], array)


@pytest.mark.parametrize("name", ["int3_g16", "int3_g16_asym", "nf4_g16", "ternary_channel"])
def test_its_zeros_are_zeros(name: str) -> None:
    w = normal_weight((5, 32), 3) + 0.02
    grid = Grid(torch.from_numpy(w), NumberFormat.parse(name))
    codes = [grid.zeros(i // grid.group)[0] for i in range(32)]
    assert not grid.tensor(torch.stack(codes, 1)).dequantize().any()


@pytest.mark.parametrize("name", ["int3_g16_offset", "iq4nl_g16"])
def test_a_grid_without_zero_says_so(name: str) -> None:
    grid = Grid(torch.from_numpy(normal_weight((5, 32), 4)), NumberFormat.parse(name))
    with pytest.raises(FormatError, match="exact zeros"):
        grid.zeros(0)
