"""AWQ's clip search: no group worse than without, on the outputs that calibration saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.compress.methods.awq_clip import AwqClip, group_errors
from octavo.core.errors import ConfigError, FormatError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from support.toy_block import stats_from


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def output_error(W: Tensor, Q: QuantizedTensor, X: Tensor) -> float:
    return float((X @ (W - torch.from_numpy(Q.dequantize())).T).double().square().sum())


@pytest.mark.parametrize("name", ["int3_g16", "int3_g16_asym", "int3_g16_offset", "nf4_g16"])
def test_clipping_lowers_the_output_error_of_every_group(name: str) -> None:
    random = torch.Generator().manual_seed(6)
    X, W = (torch.randn(n, 64, generator=random) for n in (500, 24))
    target, stats = NumberFormat.parse(name), stats_from(X)
    clipped, plain = AwqClip().encode(W, target, stats), rtn.encode(W.numpy(), target)
    assert stats.hessian is not None
    grouped = target.groups((24, 64))
    errors = [
        group_errors(W - torch.from_numpy(Q.dequantize()), stats.hessian, grouped)
        for Q in (clipped, plain)
    ]
    assert (errors[0] <= errors[1]).all()
    assert output_error(W, clipped, X) < 0.95 * output_error(W, plain, X)


@pytest.mark.parametrize("name", ["int3_channel", "int3_tensor", "int3_tensor_asym"])
def test_clipping_of_rows_and_tensors(name: str) -> None:
    random = torch.Generator().manual_seed(7)
    X, W = (torch.randn(n, 64, generator=random) for n in (500, 24))
    target = NumberFormat.parse(name)
    clipped = AwqClip().encode(W, target, stats_from(X))
    assert output_error(W, clipped, X) < output_error(W, rtn.encode(W.numpy(), target), X)


def test_group_errors_are_those_of_the_outputs() -> None:
    random = torch.Generator().manual_seed(8)
    X, D = (torch.randn(n, 48, generator=random, dtype=torch.float64) for n in (100, 5))
    found = group_errors(D, X.T @ X, (5, 3, 16))
    for g in range(3):
        part = slice(16 * g, 16 * g + 16)
        expected = (X[:, part] @ D[:, part].T).square().sum(0)
        assert torch.allclose(found[:, g, 0], expected, rtol=1e-12)
    assert found.shape == (5, 3, 1)
    whole = group_errors(D, X.T @ X, (1, 1, 240))
    assert torch.allclose(whole.squeeze(), (X @ D.T).square().sum(), rtol=1e-12)


def test_the_first_clip_tried_is_none() -> None:
    W = normal(8, 32, 9)
    target = NumberFormat.parse("int4_g16")
    one = AwqClip(points=1).encode(W, target, stats_from(torch.randn(50, 32)))
    np.testing.assert_array_equal(one.dequantize(), rtn.encode(W.numpy(), target).dequantize())


def test_pruned_weights_stay_zero_or_are_refused() -> None:
    X, W = normal(256, 256, 10), normal(256, 256, 11)
    mask, stats = X > -0.5, stats_from(X)
    made = AwqClip().encode(W, NumberFormat.parse("int4_g32_asym"), stats, mask)
    assert not made.dequantize()[~mask.numpy()].any()
    with pytest.raises(FormatError, match="exact zeros"):
        AwqClip().encode(W, NumberFormat.parse("int4_g32_offset"), stats, mask)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_shrink"):
        AwqClip(max_shrink=1.0)
    with pytest.raises(ConfigError, match="points"):
        AwqClip(points=0)
