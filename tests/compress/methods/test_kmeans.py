"""Learned codebooks: known optima, sensitive weights, and what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.methods.kmeans import FisherKMeans, KMeans, Start, nearest
from octavo.core.errors import ConfigError, FormatError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor

NOTHING = LinearStats()
LUT4 = NumberFormat.parse("lut4_tensor")


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def error(W: Tensor, Q: QuantizedTensor, weight: Tensor | float = 1.0) -> float:
    off = (W - torch.from_numpy(Q.dequantize())).double()
    return float((weight * off**2).sum())


@pytest.mark.parametrize("start", ["linear", "optimal"])
def test_normal_weights_reach_lloyd_max(start: Start) -> None:
    """The best 16 levels of N(0, 1) have a mean squared error of 0.0095 (methods.md section 3)."""
    W = normal(400, 500, 0)
    made = KMeans(start, iterations=300).encode(W, LUT4, NOTHING)
    assert error(W, made) / W.numel() == pytest.approx(0.0095, rel=0.01)


def test_levels_are_those_of_max() -> None:
    """Max's quantizer for 4 levels: 0.4528 and 1.510 (Max 1960, table I)."""
    made = KMeans().encode(normal(400, 500, 1), NumberFormat.parse("lut2_tensor"), NOTHING)
    assert made.codebook is not None
    np.testing.assert_allclose(made.codebook, [-1.510, -0.4528, 0.4528, 1.510], atol=0.02)


@pytest.mark.parametrize("name", ["lut4_tensor", "lut4_tensor_sbf16"])
def test_few_distinct_values_are_kept_exactly(name: str) -> None:
    values = np.random.default_rng(2).standard_normal(16).astype(np.float32)
    W = torch.from_numpy(np.random.default_rng(3).choice(values, (12, 40)))
    made = KMeans().encode(W, NumberFormat.parse(name), NOTHING)
    np.testing.assert_array_equal(made.dequantize(), W.numpy())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("where", ["channel", "g32"])
def test_better_than_uniform_steps(bits: int, where: str) -> None:
    W = normal(32, 128, 4) * torch.linspace(0.1, 10, 32)[:, None]
    made = KMeans().encode(W, NumberFormat.parse(f"lut{bits}_{where}"), NOTHING)
    assert error(W, made) < error(
        W, rtn.encode(W.numpy(), NumberFormat.parse(f"int{bits}_{where}"))
    )


def test_every_weight_has_its_nearest_level() -> None:
    W = normal(16, 96, 5)
    made = KMeans().encode(W, NumberFormat.parse("lut3_g32"), NOTHING)
    assert made.codebook is not None
    assert (np.diff(made.codebook) >= 0).all()
    values = made.steps().repeat(32, 1)[..., None] * made.codebook.astype(np.float64)
    least = np.abs(values - W.numpy()[..., None]).min(-1)
    off = np.abs(made.dequantize() - W.numpy().astype(np.float64))
    assert (off <= least + 4 * 2.0**-24 * np.abs(W.numpy()).max()).all()


def test_sensitive_weights_are_kept_better() -> None:
    W, random = normal(32, 128, 6), np.random.default_rng(7)
    fisher = torch.from_numpy(random.gamma(0.1, size=(32, 128)).astype(np.float32))
    target = NumberFormat.parse("lut3_channel")
    aware = FisherKMeans().encode(W, target, LinearStats(tokens=1, fisher=fisher))
    blind = KMeans().encode(W, target, NOTHING)
    assert error(W, aware, fisher) < 0.9 * error(W, blind, fisher)
    assert error(W, aware) > error(W, blind)


def test_equal_sensitivity_is_none() -> None:
    W, target = normal(8, 64, 8), NumberFormat.parse("lut3_channel")
    for value in (1.0, 0.0):  # no gradient at all: every weight counts alike
        stats = LinearStats(tokens=1, fisher=torch.full((8, 64), value))
        aware = FisherKMeans().encode(W, LUT4, stats)
        np.testing.assert_array_equal(
            aware.dequantize(), KMeans().encode(W, LUT4, NOTHING).dequantize()
        )
    scaled = FisherKMeans().encode(W, target, LinearStats(tokens=1, fisher=torch.ones(8, 64)))
    assert error(W, scaled) == error(W, KMeans().encode(W, target, NOTHING))


def test_rows_count_by_their_size() -> None:
    """A row a hundred times larger owns the codebook: the objective is in units of weights."""
    random = np.random.default_rng(9)
    W = np.stack([random.uniform(-1, 1, 256), random.laplace(0, 0.1, 256)]).astype(np.float32)
    W[0] *= 100
    made = KMeans().encode(torch.from_numpy(W), NumberFormat.parse("lut3_channel"), NOTHING)
    alone = KMeans().encode(torch.from_numpy(W[:1]), NumberFormat.parse("lut3_channel"), NOTHING)
    assert made.codebook is not None
    assert alone.codebook is not None
    np.testing.assert_allclose(made.codebook, alone.codebook, atol=0.02)


@pytest.mark.parametrize("name", ["lut4_tensor", "lut2_channel", "lut1_g32"])
def test_pruned_weights_are_exact_zeros(name: str) -> None:
    W, mask = normal(16, 64, 10) + 3, normal(16, 64, 11) > 0
    made = KMeans().encode(W, NumberFormat.parse(name), NOTHING, mask)
    values = made.dequantize()
    assert not values[~mask.numpy()].any()
    assert values[mask.numpy()].any()


def test_a_tensor_pruned_away() -> None:
    mask = torch.zeros(4, 32, dtype=torch.bool)
    made = KMeans().encode(normal(4, 32, 0), NumberFormat.parse("lut2_channel"), NOTHING, mask)
    assert not made.dequantize().any()


@pytest.mark.parametrize("name", ["lut4_tensor", "lut4_channel", "lut4_g32_se8m0"])
def test_a_tensor_of_zeros(name: str) -> None:
    made = KMeans().encode(torch.zeros(4, 32), NumberFormat.parse(name), NOTHING)
    assert not made.dequantize().any()


def test_what_is_stored_comes_back() -> None:
    made = KMeans().encode(normal(8, 64, 12), NumberFormat.parse("lut5_g32_sbf16"), NOTHING)
    again = QuantizedTensor.from_state(made.state("w"), "w", made.format, made.shape)
    np.testing.assert_array_equal(again.dequantize(), made.dequantize())


def test_nearest_prefers_the_lower_of_a_tie() -> None:
    levels = np.array([0.0, 1.0, 3.0], np.float32)
    u = np.array([-1.0, 0.5, 0.51, 2.0, 9.0], np.float32)
    assert nearest(u, levels).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "name", ["int4_g32", "nf4_g32", "bf16", "lut4_g32_si6x64", "lut4_g32_se4m3"]
)
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="learned codebook"):
        KMeans().encode(normal(4, 64, 0), NumberFormat.parse(name), NOTHING)


def test_scales_that_overflow_are_refused() -> None:
    with pytest.raises(FormatError, match="_sbf16"):
        KMeans().encode(normal(4, 64, 0) * 1e6, NumberFormat.parse("lut4_channel"), NOTHING)


def test_options_and_needs() -> None:
    assert KMeans.needs is Needs.NOTHING
    assert FisherKMeans.needs is Needs.FISHER
    with pytest.raises(ConfigError, match="start"):
        KMeans(start="forgy")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="iterations"):
        KMeans(iterations=-1)
