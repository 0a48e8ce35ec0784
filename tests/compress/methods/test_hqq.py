"""HQQ: the l_p error falls, real offsets are what does it, and no data is looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.methods.hqq import Hqq, codes
from octavo.core.errors import ConfigError, FormatError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor

NOTHING = LinearStats()


def heavy_tailed(rows: int, width: int, seed: int) -> Tensor:
    """Weights with outliers: Student's t of 4 degrees of freedom."""
    values = np.random.default_rng(seed).standard_t(4, (rows, width)) * 0.02
    return torch.from_numpy(values.astype(np.float32))


def lp(W: Tensor, Q: QuantizedTensor | np.ndarray, p: float = 0.7) -> np.ndarray:
    """sum |W - Q|^p of each row of groups of 64."""
    values = Q.dequantize() if isinstance(Q, QuantizedTensor) else Q
    off = np.abs(W.numpy().astype(np.float64) - values)
    return (off**p).reshape(len(W), -1, 64).sum(-1)


@pytest.mark.parametrize("scale", ["", "_sbf16", "_sfp32"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_group_is_worse_and_the_whole_is_better(bits: int, scale: str) -> None:
    W, target = heavy_tailed(32, 256, 0), NumberFormat.parse(f"int{bits}_g64_offset{scale}")
    made, plain = Hqq().encode(W, target, NOTHING), rtn.encode(W.numpy(), target)
    np.testing.assert_array_equal(made.steps(), plain.steps())
    slack = 1 + 64 * 2.0**-23  # both sums are fp32 inside, of 64 terms
    assert (lp(W, made) <= lp(W, plain) * slack).all()
    assert lp(W, made).sum() < 0.99 * lp(W, plain).sum()
    assert lp(W, made, 1.0).sum() < lp(W, plain, 1.0).sum()


def test_more_iterations_are_never_worse() -> None:
    W, target = heavy_tailed(32, 256, 1), NumberFormat.parse("int3_g64_offset")
    errors = [lp(W, Hqq(iterations=n).encode(W, target, NOTHING)).sum() for n in (0, 1, 3, 8, 20)]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 5
    np.testing.assert_array_equal(errors[0], lp(W, rtn.encode(W.numpy(), target)).sum())


def test_letting_large_errors_stand_pays() -> None:
    """With a tiny beta every error is shrunk to nothing, which leaves plain least squares."""
    W, target = heavy_tailed(64, 256, 4), NumberFormat.parse("int3_g64_offset_sfp32")
    shrinks, squares = (Hqq(beta=b).encode(W, target, NOTHING) for b in (10.0, 1e-9))
    assert lp(W, shrinks).sum() < 0.995 * lp(W, squares).sum()


def test_integer_zeros_lose_most_of_the_gain() -> None:
    """The negative control: rounding the zero points that HQQ found to integers."""
    W, target = heavy_tailed(64, 256, 2), NumberFormat.parse("int3_g64_offset_sfp32")
    made, plain = Hqq().encode(W, target, NOTHING), rtn.encode(W.numpy(), target)
    offsets = made.offsets()
    assert offsets is not None
    s, m = torch.from_numpy(made.steps())[..., None], torch.from_numpy(offsets)[..., None]
    m = -s * (-m / s).round()
    grouped = W.reshape(64, 4, 64)
    integer = (s * codes(grouped, s, m, 3) + m).reshape(W.shape).numpy()
    gain = lp(W, plain).sum() - lp(W, made).sum()
    assert lp(W, plain).sum() - lp(W, integer).sum() < 0.5 * gain


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    st.integers(1, 8),
    st.sampled_from(["g16", "g64", "channel", "tensor"]),
    st.sampled_from(["", "_sbf16", "_sfp32"]),
    st.integers(0, 1000),
)
def test_codes_are_nearest_to_the_weights(bits: int, where: str, scale: str, seed: int) -> None:
    W, target = heavy_tailed(6, 64, seed), NumberFormat.parse(f"int{bits}_{where}_offset{scale}")
    made = Hqq().encode(W, target, NOTHING)
    offsets, n = made.offsets(), 64 // made.steps().shape[1]
    assert offsets is not None
    s, m = (np.broadcast_to(x, (6, 64 // n)).repeat(n, 1) for x in (made.steps(), offsets))
    grid = m[..., None] + s[..., None].astype(np.float64) * np.arange(2**bits)
    least = np.abs(grid - W.numpy()[..., None]).min(-1)
    off = np.abs(made.dequantize() - W.numpy().astype(np.float64))
    assert (off <= least + 4 * 2.0**-24 * np.abs(grid).max()).all()


def test_constant_groups_are_exact() -> None:
    W = torch.full((3, 64), 0.25)
    made = Hqq().encode(W, NumberFormat.parse("int4_g16_offset"), NOTHING)
    np.testing.assert_array_equal(made.dequantize(), W.numpy())


def test_weights_on_the_grid_stay() -> None:
    W = torch.arange(16.0).repeat(4, 4) * 0.5 - 2.0
    made = Hqq().encode(W, NumberFormat.parse("int4_g16_offset"), NOTHING)
    np.testing.assert_array_equal(made.dequantize(), W.numpy())


def test_shrink_is_the_proximal_step_of_small_and_large_errors() -> None:
    """Large errors pass nearly whole, small ones vanish; between, |x| - |x|^(p-1) / beta."""
    x = torch.tensor([0.0, 1e-3, -0.5, 4.0])
    expected = torch.tensor([0.0, 0.0, -(0.5 - 0.5**-0.3 / 10), 4 - 4**-0.3 / 10])
    assert torch.allclose(Hqq().shrink(x, 10.0), expected, rtol=1e-6)


@pytest.mark.parametrize("factor", [2.0**-6, 0.5, 16.0])
def test_the_size_of_weights_does_not_matter(factor: float) -> None:
    W, target = heavy_tailed(16, 128, 3), NumberFormat.parse("int3_g64_offset_sfp32")
    one, other = (Hqq().encode(w, target, NOTHING) for w in (W, W * factor))
    np.testing.assert_array_equal(one.dequantize() * np.float32(factor), other.dequantize())


def test_needs_no_data() -> None:
    assert Hqq.needs is Needs.NOTHING


@pytest.mark.parametrize("name", ["int4_g64", "int4_g64_asym", "nf4_g64", "int4_g32_offset_su6x64"])
def test_formats_without_a_free_offset_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="real offset"):
        Hqq().encode(heavy_tailed(4, 64, 0), NumberFormat.parse(name), NOTHING)


def test_pruned_weights_are_refused() -> None:
    W, target = heavy_tailed(4, 64, 0), NumberFormat.parse("int4_g64_offset")
    with pytest.raises(FormatError, match="exact zeros"):
        Hqq().encode(W, target, NOTHING, W > 0)
    assert Hqq().encode(W, target, NOTHING, torch.ones(4, 64, dtype=torch.bool)).shape == (4, 64)


@pytest.mark.parametrize("options", [(0.0, 10.0, 1.0, 1), (0.7, 0.0, 1.0, 1), (0.7, 1.0, 0.9, 1)])
def test_options_are_checked(options: tuple[float, float, float, int]) -> None:
    with pytest.raises(ConfigError, match="hqq"):
        Hqq(*options)
