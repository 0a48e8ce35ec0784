"""Masks: exactly as many zeros as asked for, where they may lie, the least salient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.compress.methods.patterns import Pattern, check_scope
from octavo.core.errors import ConfigError, FormatError


def saliency(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 40), st.floats(0, 0.99), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_unstructured_masks_have_the_exact_number_of_zeros(
    rows: int, width: int, sparsity: float, by_row: bool, equal: bool
) -> None:
    values = torch.ones(rows, width) if equal else saliency(rows, width)
    mask = Pattern("", sparsity).mask(values, "row" if by_row else "tensor")
    if by_row:
        assert ((~mask).sum(1) == round(sparsity * width)).all()
    assert int((~mask).sum()) == (
        rows * round(sparsity * width) if by_row else round(sparsity * rows * width)
    )


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 8), (1, 2), (5, 16)])
def test_n_of_m_keeps_n_in_every_aligned_group(n: int, m: int) -> None:
    values = saliency(6, 5 * m)
    mask = Pattern(f"{n}:{m}").mask(values)
    groups, kept = values.reshape(-1, m), mask.reshape(-1, m)
    assert (kept.sum(1) == n).all()
    least_kept = groups.masked_fill(~kept, 2.0).amin(1)
    assert (least_kept > groups.masked_fill(kept, -1.0).amax(1)).all()


def test_what_goes_is_the_least_of_its_row_or_of_all() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    by_row = [[False, False, True, True]] * 2
    assert Pattern().mask(values, "row").tolist() == by_row
    assert Pattern().mask(values, "tensor").tolist() == [[False] * 4, [True] * 4]


def test_of_equal_ones_the_first_goes() -> None:
    assert Pattern("2:4").mask(torch.ones(1, 4)).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("scope", ["row", "tensor"])
def test_blocks_go_whole_by_the_sum_of_their_saliency(scope: str) -> None:
    values = saliency(8, 24)
    mask = Pattern("4x6", 0.5).mask(values, scope)  # type: ignore[arg-type]
    blocks = mask.reshape(2, 4, 4, 6).permute(0, 2, 1, 3).reshape(2, 4, 24)
    assert (blocks.all(2) | ~blocks.any(2)).all()
    kept = blocks.all(2)
    sums = values.reshape(2, 4, 4, 6).sum((1, 3))
    if scope == "row":
        assert kept.sum(1).tolist() == [2, 2]
        assert (sums.masked_fill(~kept, 99).amin(1) > sums.masked_fill(kept, -1).amax(1)).all()
    else:
        assert int(kept.sum()) == 4
        assert sums[kept].min() > sums[~kept].max()


@pytest.mark.parametrize("name", ["4:2", "2:2", "0:4", "2:", "x", "4x", "0x4", "2:4:8"])
def test_a_name_that_is_no_pattern_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="keeps two of every four"):
        Pattern(name)


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan"), "half", True])
def test_a_share_out_of_range_is_refused(sparsity: object) -> None:
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        Pattern("", sparsity)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "shape"), [("2:4", (4, 6)), ("4x4", (6, 8)), ("4x4", (8, 6))])
def test_a_shape_that_the_pattern_does_not_divide_is_refused(
    name: str, shape: tuple[int, int]
) -> None:
    with pytest.raises(FormatError, match="it needs multiples of"):
        Pattern(name).mask(torch.ones(shape))


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be row or tensor"):
        check_scope("layer")
