"""Searched scales with GPTQ and coordinate descent: never worse than what it starts from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.compress.base import LinearStats
from octavo.compress.methods.gptq import Gptq
from octavo.compress.methods.searched import Searched, StoredGrid, fitted, objective, values
from octavo.core.errors import ConfigError, FormatError
from octavo.formats.gguf_formats import GGUF_FORMATS
from octavo.formats.number_format import NumberFormat
from octavo.io.gguf_blocks import dequantize, quantized
from octavo.io.gguf_search import SHAPES, search

WIDTH, ROWS, TOKENS = 256, 48, 2048


def layer(seed: int = 0) -> tuple[torch.Tensor, LinearStats]:
    """Normal weights, and correlated inputs of unequal size."""
    torch.manual_seed(seed)
    mix = torch.eye(WIDTH) + torch.randn(WIDTH, WIDTH) / 16
    x = torch.randn(TOKENS, WIDTH) @ mix * torch.linspace(0.3, 2, WIDTH)
    return torch.randn(ROWS, WIDTH) / 16, LinearStats(TOKENS, hessian=2 / TOKENS * x.T @ x)


def lost(weight: torch.Tensor, stats: LinearStats, found: np.ndarray) -> float:
    assert stats.hessian is not None
    return float(objective(weight, stats.hessian, torch.from_numpy(found)).sum())


@pytest.mark.parametrize("type_name", list(SHAPES))
def test_each_step_lowers_the_objective(type_name: str) -> None:
    weight, stats = layer()
    assert stats.hessian is not None
    target = GGUF_FORMATS[type_name]
    weigh = stats.hessian.diagonal().contiguous().numpy()
    rounded = dequantize(type_name, search(type_name, weight.numpy(), weigh))
    found = [rounded, *(Searched(sweeps=n).encode(weight, target, stats).dequantize()
                        for n in (0, 1, 3))]  # fmt: skip
    errors = [lost(weight, stats, values) for values in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_it_beats_gptq_on_the_same_format() -> None:
    weight, stats = layer()
    target = NumberFormat.parse("int4_g32")
    theirs = Gptq().encode(weight, target, stats).dequantize()
    ours = Searched().encode(weight, target, stats).dequantize()
    assert lost(weight, stats, ours) < 0.95 * lost(weight, stats, theirs)


def test_uncorrelated_inputs_leave_the_nearest_codes() -> None:
    """A diagonal H: no column can make up for another, and sweeps move nothing."""
    weight, _ = layer()
    data = search("Q4_K", weight.numpy(), np.ones(WIDTH, np.float32))
    grid = StoredGrid(weight, quantized("Q4_K", data))
    codes = torch.stack([grid.nearest(weight[:, i], i // grid.group)[0] for i in range(WIDTH)], 1)
    swept = Searched().descend(weight, torch.eye(WIDTH), grid, codes)
    assert torch.equal(codes, swept)


def test_a_sweep_finds_the_best_code_of_each_column_given_the_others() -> None:
    """After many sweeps no single code can be changed for the better: checked one by one."""
    weight, stats = layer(1)
    weight, H = weight[:3], stats.hessian
    assert H is not None
    grid = StoredGrid(weight, quantized("Q4_0", search("Q4_0", weight.numpy())))
    codes = torch.stack([grid.nearest(weight[:, i], i // grid.group)[0] for i in range(WIDTH)], 1)
    for _ in range(40):
        codes = Searched(block=17).descend(weight, H, grid, codes)
    at = objective(weight, H, values(grid, codes))
    for column in range(0, WIDTH, 5):
        for step in (-1, 1):
            moved = codes.clone()
            moved[:, column] = (codes[:, column] + step).clamp(0, 15)
            assert (objective(weight, H, values(grid, moved)) >= at * (1 - 1e-5)).all()


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q3_K", "Q5_K"])
def test_fitted_scales_never_hurt_a_row(type_name: str) -> None:
    weight, stats = layer(2)
    H = stats.hessian
    assert H is not None
    grid = StoredGrid(weight, quantized(type_name, search(type_name, weight.numpy())))
    codes = torch.stack([grid.nearest(weight[:, i], i // grid.group)[0] for i in range(WIDTH)], 1)
    before = objective(weight, H, values(grid, codes))
    after = objective(weight, H, values(fitted(weight, H, grid, codes), codes))
    assert (after <= before).all()
    assert after.sum() < before.sum()


def test_an_input_that_never_spoke_is_no_obstacle() -> None:
    weight, stats = layer()
    assert stats.hessian is not None
    stats.hessian[7] = stats.hessian[:, 7] = 0
    found = Searched().encode(weight, NumberFormat.parse("int4_g32"), stats).dequantize()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["nf4_g64", "int4_g64", "iq4nl_g32_si6x256"])
def test_other_formats_are_refused(name: str) -> None:
    weight, stats = layer()
    with pytest.raises(FormatError, match=r"searched: .* it encodes int4_g32"):
        Searched().encode(weight, NumberFormat.parse(name), stats)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="sweeps"):
        Searched(sweeps=-1)
