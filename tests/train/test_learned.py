"""Learned steps: the start is round to nearest, prepare is convert, elastic grids are ParetoQ's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.errors import FormatError
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import encode
from support.number_formats import normal_weight

torch = pytest.importorskip("torch")
learned = pytest.importorskip("octavo.train.learned")
grids = pytest.importorskip("octavo.train.grids")

NEAREST = ("int2_g32", "int3_g64", "int4_g32_sbf16", "int8_channel", "int5_tensor",
           "ternary_channel", "ternary_tensor", "ternary_g64_sfp32")  # fmt: skip
ELASTIC = ("int2_g32_offset", "int2_channel_offset_sfp32", "int3_g64_offset", "int1_g32_offset")


def weight_and_steps(name: str, seed: int = 0) -> tuple[Any, Any, NumberFormat]:
    format = NumberFormat.parse(name)
    weight = torch.from_numpy(normal_weight((6, 128), seed))
    return weight, learned.first_steps(weight, format), format


def assert_same_bits(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.mark.parametrize("name", NEAREST)
def test_the_start_is_round_to_nearest(name: str) -> None:
    weight, steps, format = weight_and_steps(name)
    nearest = encode(weight.numpy(), format)
    assert_same_bits(learned.learned_weight(weight, steps, format).numpy(), nearest.dequantize())
    converted = learned.convert_learned(weight, steps, format)
    np.testing.assert_array_equal(converted.codes, nearest.codes)
    np.testing.assert_array_equal(converted.scales, nearest.scales)


@pytest.mark.parametrize("name", [*NEAREST, *ELASTIC])
def test_forward_is_convert_wherever_training_went(name: str) -> None:
    for seed in range(20):
        weight, steps, format = weight_and_steps(name, seed)
        factor = 1 + 0.5 * torch.randn(steps.shape, generator=torch.Generator().manual_seed(seed))
        converted = learned.convert_learned(weight, steps * factor, format).dequantize()
        forward = learned.learned_weight(weight, steps * factor, format)
        assert_same_bits(forward.numpy(), converted)


def test_groups_of_zeros_stay_zero_and_keep_a_step() -> None:
    for name in ("int4_g32", "ternary_channel"):
        format, weight = NumberFormat.parse(name), torch.zeros(2, 64)
        steps = learned.first_steps(weight, format)
        assert not learned.learned_weight(weight, steps, format).any()
        assert not learned.convert_learned(weight, steps, format).dequantize().any()


@pytest.mark.parametrize(
    ("name", "cells", "ratio"),
    [("int2_channel_offset_sfp32", 4, 2), ("ternary_channel_sfp32", 3, 1.5)],
)
def test_elastic_formats_are_the_stretched_grids(name: str, cells: int, ratio: float) -> None:
    """Values and both gradients, against ParetoQ's own formula in terms of the range a."""
    weight, steps, format = weight_and_steps(name)
    toward = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    steps = steps * 0.7  # so that some weights lie outside the range
    ours_w, ours_s = weight.clone().requires_grad_(), steps.clone().requires_grad_()
    ours = learned.learned_weight(ours_w, ours_s, format)
    (ours * toward).sum().backward()
    their_w, their_a = weight.clone().requires_grad_(), (steps[:, 0] * ratio).requires_grad_()
    grid = grids.StretchedGrid(cells)
    theirs = grids.round_to_grid(their_w, their_a, grid)
    (theirs * toward).sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert torch.equal(ours_w.grad, their_w.grad)
    assert 0 < int((ours_w.grad == 0).sum()) < weight.numel()
    top = grid.top * ratio  # the largest level in steps
    expected = their_a.grad * ratio / (weight.shape[1] * top) ** 0.5
    torch.testing.assert_close(ours_s.grad[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_two_elastic_bits_lose_less_than_round_to_nearest() -> None:
    weight, steps, format = weight_and_steps("int2_g32_offset")
    elastic = (learned.learned_weight(weight, steps, format) - weight).square().mean()
    for name in ("int2_g32", "int2_g32_offset"):
        nearest = encode(weight.numpy(), NumberFormat.parse(name)).dequantize()
        assert elastic.item() < np.square(nearest - weight.numpy()).mean()


@pytest.mark.parametrize(
    "name", ["int4_g32_asym", "nf4_g64", "fp8_e4m3_channel", "binary_channel", "int4_g32_se4m3",
             "int3_g16_si6x256", "int4_g32_offset_su6x256"],
)  # fmt: skip
def test_formats_without_learned_steps_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match=f"{name} has no learned step: give"):
        learned.check_learnable(NumberFormat.parse(name))


def test_a_step_that_outgrows_its_type_is_refused() -> None:
    weight, steps, format = weight_and_steps("int4_g32")
    with pytest.raises(FormatError, match="_sbf16"):
        learned.learned_weight(weight, steps * 1e9, format)
