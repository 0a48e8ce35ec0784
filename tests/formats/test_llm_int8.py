"""LLM.int8(): planted outliers stay exact, and the rest no longer suffers from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from octavo.formats import rtn
from octavo.formats.activations import fake_quantize_int8, fake_quantize_llm_int8
from octavo.formats.number_format import NumberFormat

F32 = npt.NDArray[np.float32]


def inputs(loud: float = 60.0) -> F32:
    """[64, 512], three of whose columns are `loud` times the others, which stay below 6."""
    X = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32).clip(-5, 5)
    X[:, [3, 77, 400]] *= loud
    return X


def weights() -> F32:
    return np.random.default_rng(1).standard_normal((128, 512)).astype(np.float32)


def error(X: F32, rounded: F32, W: F32) -> float:
    wanted = X.astype(np.float64) @ weights().astype(np.float64).T
    found = rounded.astype(np.float64) @ W.astype(np.float64).T
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def row_wise(X: F32) -> F32:
    return fake_quantize_int8(X, np.abs(X).max(-1, keepdims=True), np)


def test_three_planted_outliers_cost_a_tenth_of_what_they_cost_without() -> None:
    X, W = inputs(), weights()
    tensor = fake_quantize_int8(X, np.abs(X).max(), np)
    mixed = fake_quantize_llm_int8(X, np)
    errors = [error(X, rounded, W) for rounded in (tensor, row_wise(X), mixed)]
    assert errors[0] > errors[1] > 10 * errors[2]
    # With weights in int8 as well, as bitsandbytes has them: the outliers' own weights round too.
    Q = rtn.encode(W, NumberFormat.parse("int8_channel")).dequantize()
    assert error(X, mixed, Q) < error(X, row_wise(X), Q) / 3


def test_the_two_parts_add_up() -> None:
    X = inputs()
    outlier = np.abs(X) > 6
    found = fake_quantize_llm_int8(X, np)
    assert (found[outlier] == X[outlier]).all()
    rest = np.where(outlier, np.float32(0), X)
    assert (found[~outlier] == row_wise(rest)[~outlier]).all()


def test_its_limits_are_no_rounding_and_plain_rows() -> None:
    X = inputs()
    assert (fake_quantize_llm_int8(X, np, 0.0) == X).all()
    assert (fake_quantize_llm_int8(X, np, np.inf) == row_wise(X)).all()


def test_rows_do_not_see_their_neighbours() -> None:
    X = inputs()
    whole = fake_quantize_llm_int8(X, np)
    for row in (0, 17, 63):
        assert (fake_quantize_llm_int8(X[row : row + 1], np)[0] == whole[row]).all()


def test_numpy_and_torch_agree_to_the_bit() -> None:
    torch = pytest.importorskip("torch")
    X = inputs()
    found = fake_quantize_llm_int8(torch.from_numpy(X), torch)
    assert (found.numpy() == fake_quantize_llm_int8(X, np)).all()
