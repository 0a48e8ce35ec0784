"""int8 activations with one scale per token, per step and fixed (methods.md, section 14)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from octavo.formats.activations import fake_quantize_int8

F32 = npt.NDArray[np.float32]


def rows(seed: int, count: int = 64, spread: float = 1.0) -> F32:
    x = np.random.default_rng(seed).standard_normal((count, 96)).astype(np.float32)
    loud = np.exp(spread * np.random.default_rng(seed + 1).standard_normal((count, 1)))
    return x * loud.astype(np.float32)


def by_token(x: F32) -> F32:
    return np.asarray(fake_quantize_int8(x, np.abs(x).max(-1, keepdims=True), np))


def by_tensor(x: F32) -> F32:
    return np.asarray(fake_quantize_int8(x, np.abs(x).max(), np))


def fixed(x: F32, peak: float) -> F32:
    return np.asarray(fake_quantize_int8(x, np.float32(peak), np))


def error(x: F32, rounded: F32) -> float:
    return float(((x - rounded) ** 2).sum())


def test_within_half_a_step_and_exact_at_the_peak() -> None:
    x = rows(0)
    peak = np.abs(x).max(-1, keepdims=True)
    rounded = by_token(x)
    assert (np.abs(x - rounded) <= peak / 127 / 2 * (1 + 2**-20)).all()
    at = np.abs(x).argmax(-1)
    each = np.arange(len(x))
    assert np.allclose(rounded[each, at], x[each, at], rtol=2**-22)
    assert not by_token(np.zeros((2, 32), np.float32)).any()


def test_numpy_and_torch_give_equal_bits() -> None:
    x = rows(1)
    theirs = fake_quantize_int8(
        torch.from_numpy(x), torch.from_numpy(np.abs(x).max(-1, keepdims=True)), torch
    )
    assert np.array_equal(by_token(x), theirs.numpy())


def test_a_row_depends_on_its_neighbours_only_under_one_scale_for_all() -> None:
    x = rows(2)
    assert np.array_equal(by_token(x)[:8], by_token(x[:8]))
    assert np.array_equal(fixed(x, 2.0)[:8], fixed(x[:8], 2.0))
    assert not np.array_equal(by_tensor(x)[:8], by_tensor(x[:8]))


@pytest.mark.parametrize("seed", range(4))
def test_on_shifted_rows_token_beats_tensor_beats_static(seed: int) -> None:
    calibrated, shifted = rows(seed), rows(seed + 100) * np.float32(3)
    token, tensor = error(shifted, by_token(shifted)), error(shifted, by_tensor(shifted))
    static = error(shifted, fixed(shifted, float(np.abs(calibrated).max())))
    assert token <= tensor <= static


def test_static_on_its_calibration_text_is_per_tensor() -> None:
    x = rows(5)
    assert np.array_equal(fixed(x, float(np.abs(x).max())), by_tensor(x))


def test_beyond_the_fixed_peak_is_the_peak() -> None:
    assert fixed(np.array([[5.0, -5.0, 1.0]], np.float32), 2.0)[0, :2].tolist() == [2.0, -2.0]
