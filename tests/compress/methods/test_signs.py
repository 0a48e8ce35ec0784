"""Binary and ternary weights: the exact optimum, its known values, and what is stored."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.compress.base import LinearStats, Needs
from octavo.compress.methods.signs import Signs, binary_scale, ternary_scale
from octavo.core.errors import ConfigError, FormatError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor

WHERE = ("tensor", "channel", "g32")
FORMATS = [f"{kind}_{where}" for kind in ("binary", "ternary") for where in WHERE]
NOTHING = LinearStats()


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def seen(width: int, seed: int) -> LinearStats:
    square = torch.rand(width, generator=torch.Generator().manual_seed(seed)) * 4 + 0.1
    return LinearStats(tokens=9, mean_square=square)


def error(W: Tensor, Q: QuantizedTensor, h: Tensor | float = 1.0) -> float:
    off = (W - torch.from_numpy(Q.dequantize())).double()
    return float((h * off**2).sum())


@pytest.mark.parametrize(
    ("name", "expected"),
    # 1 - 2 / pi; and what is left at the threshold where it is least (methods.md, section 1).
    [("binary_tensor", 1 - 2 / math.pi), ("ternary_tensor", 0.1902)],
)
def test_normal_weights_leave_what_is_known(name: str, expected: float) -> None:
    W = normal(1000, 1000, 0)
    made = Signs("equal").encode(W, NumberFormat.parse(name), NOTHING)
    # The mean of 10^6 squares of normal numbers is off by sqrt(2) / 1000, and so is the rest.
    assert error(W, made) / W.numel() == pytest.approx(expected, abs=3 * math.sqrt(2) / 1000)


@pytest.mark.parametrize("seed", range(20))
def test_the_optimum_is_that_of_all_choices(seed: int) -> None:
    random = np.random.default_rng(seed)
    w, h = random.standard_normal(7), random.uniform(0.1, 3, 7)

    def left(t: tuple[int, ...]) -> float:
        code = np.array(t)
        norm = (h * code**2).sum()
        s = (h * code * w).sum() / norm if norm else 0.0
        return float((h * (w - s * code) ** 2).sum())

    size, weight = np.abs(w)[None, None], h[None, None]
    s = float(ternary_scale(size, weight)[0, 0])
    code = np.sign(w) * (np.abs(w) > s / 2)
    found = float((h * (w - s * code) ** 2).sum())
    best = min(map(left, itertools.product((-1, 0, 1), repeat=7)))
    assert found == pytest.approx(best, rel=1e-12)
    s = float(binary_scale(size, weight)[0, 0])
    found = float((h * (w - s * np.sign(w)) ** 2).sum())
    assert found == pytest.approx(min(map(left, itertools.product((-1, 1), repeat=7))), rel=1e-12)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scale", ["", "_sbf16", "_sfp32"])
def test_never_worse_than_the_mean(name: str, scale: str) -> None:
    """Rounding the scale costs at most its relative error squared, 2^-18 in bf16."""
    W, target = normal(12, 64, 1), NumberFormat.parse(name + scale)
    plain = rtn.encode(W.numpy(), target)
    made = Signs("equal").encode(W, target, NOTHING)
    assert made.state("w").keys() == plain.state("w").keys()
    slack = float((W**2).sum()) * 2.0**-18
    assert error(W, made) <= error(W, plain) + slack
    if name.startswith("binary"):
        np.testing.assert_array_equal(made.codes, plain.codes)
    stats = seen(64, 2)
    weighed = Signs().encode(W, target, stats)
    assert stats.mean_square is not None
    slack = float((stats.mean_square * W**2).sum()) * 2.0**-18
    for other in (made, plain):
        h = stats.mean_square
        assert error(W, weighed, h) <= error(W, other, h) + slack


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_such_a_matrix_stays(name: str) -> None:
    target = NumberFormat.parse(name)
    W = torch.from_numpy(rtn.encode(normal(8, 64, 3).numpy(), target).dequantize())
    np.testing.assert_array_equal(Signs("equal").encode(W, target, NOTHING).dequantize(), W.numpy())


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_and_inputs_never_seen(name: str) -> None:
    target, W = NumberFormat.parse(name), normal(4, 64, 4)
    nothing = Signs("equal").encode(torch.zeros(4, 64), target, NOTHING)
    assert not nothing.dequantize().any()
    silent = LinearStats(tokens=1, mean_square=torch.zeros(64))
    assert np.isfinite(Signs().encode(W, target, silent).dequantize()).all()


def test_pruned_weights_are_zero() -> None:
    W, mask = normal(6, 64, 5), normal(6, 64, 6) > 0
    made = Signs("equal").encode(W, NumberFormat.parse("ternary_channel"), NOTHING, mask)
    assert not made.dequantize()[~mask.numpy()].any()
    with pytest.raises(FormatError, match="exact zeros"):
        Signs("equal").encode(W, NumberFormat.parse("binary_channel"), NOTHING, mask)


@pytest.mark.parametrize("name", ["int4_g32", "bf16", "lut4_channel", "ternary_g32_se4m3"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="ternary_channel"):
        Signs("equal").encode(normal(4, 64, 0), NumberFormat.parse(name), NOTHING)


def test_data_is_asked_for_only_where_it_counts() -> None:
    assert Signs().needs == Needs.MEAN_SQUARE
    assert Signs("equal").needs == Needs.NOTHING
    with pytest.raises(ConfigError, match="inputs or equal"):
        Signs("all")  # type: ignore[arg-type]
