from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.formats.activations import (
    a8_group_for,
    fake_quantize_a8,
    fake_quantize_a16,
    padded_width,
    quantize_a8,
    quantize_a16,
    round_bf16,
)

F32 = npt.NDArray[np.float32]


def _rows(seed: int, width: int) -> F32:
    """Ordinary rows, rows of zeros, tiny, subnormal and large ones, and one with an outlier."""
    x = np.random.default_rng(seed).standard_normal((6, width)).astype(np.float32)
    x *= np.array([1, 0, 1e-37, 1e-44, 1e30, 1], np.float32)[:, None]
    x[5, width // 2] = 3000
    return x


@pytest.mark.parametrize(
    ("weight_group", "k_pad", "group"),
    [
        *((32, 576, 32), (64, 576, 64), (128, 576, 64), (16, 256, 32), (48, 576, 32)),
        *((64, 96, 32), (576, 576, 64), (96, 96, 32), (100, 64, 64), (192, 192, 64)),
    ],
)
def test_the_group_follows_the_weight(weight_group: int, k_pad: int, group: int) -> None:
    assert a8_group_for(weight_group, k_pad) == group


@given(st.integers(0, 2**32), st.sampled_from([32, 64]), st.integers(1, 130))
def test_each_group_is_rounded_as_the_page_says(seed: int, group: int, width: int) -> None:
    k_pad = padded_width(width)
    if k_pad % group:
        return
    x = _rows(seed, width)
    q, scale = quantize_a8(x, group, np)
    padded = np.zeros((6, k_pad), np.float32)
    padded[:, :width] = x
    assert (q.dtype, scale.dtype) == (np.dtype(np.int8), np.dtype(np.float32))
    for row in range(6):
        for g in range(k_pad // group):
            values = padded[row, g * group : (g + 1) * group]
            amax = np.abs(values).max()
            codes = q[row, g * group : (g + 1) * group]
            if amax < 2.0**-118:
                assert not codes.any()
                assert scale[row, g] == 0
                continue
            assert scale[row, g] == amax / np.float32(127)
            expected = np.rint(values * (np.float32(127) / amax))
            np.testing.assert_array_equal(codes, expected)
            assert np.abs(codes.astype(int)).max() == 127


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("width", [64, 100, 576])
def test_numpy_and_torch_agree_bit_for_bit(group: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    x = _rows(width, width).reshape(2, 3, width)
    ours, theirs = quantize_a8(x, group, np), quantize_a8(torch.from_numpy(x), group, torch)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other.numpy())
    fake = fake_quantize_a8(torch.from_numpy(x), group, torch).numpy()
    np.testing.assert_array_equal(fake, fake_quantize_a8(x, group, np))


@pytest.mark.parametrize("width", [64, 100])
def test_a16_agrees_in_numpy_and_torch_and_splits_into_bytes(width: int) -> None:
    torch = pytest.importorskip("torch")
    x = _rows(width, width)
    q, scale = quantize_a16(x, 32, np)
    other, other_scale = quantize_a16(torch.from_numpy(x), 32, torch)
    np.testing.assert_array_equal(q, other.numpy())
    np.testing.assert_array_equal(scale, other_scale.numpy())
    high = (q + 128) >> 8
    assert np.abs(high).max() <= 127
    assert np.abs(q - 256 * high).max() <= 127
    # half a step, and one more where the low byte would be -128
    steps = np.repeat(scale, 32, axis=1)[:, :width]
    error = np.abs(fake_quantize_a16(x, 32, np) - x)
    assert (error <= 1.51 * steps + np.where(steps == 0, np.abs(x), 0)).all()


def test_what_comes_back_is_within_half_a_step() -> None:
    x = _rows(1, 96)
    error = np.abs(fake_quantize_a8(x, 32, np) - x)
    _, scale = quantize_a8(x, 32, np)
    # half a step and the roundings of 127 / amax, its product, amax / 127 and the last product
    bound = scale * np.float32(0.5 + 127 * 4 * 2.0**-24) + np.float32(3.8e-37)
    assert (error <= np.repeat(bound, 32, axis=1)).all()


def test_an_outlier_disturbs_its_own_group_only() -> None:
    x = _rows(2, 128)[[0]]
    loud = x.copy()
    loud[0, 3] = 1e4
    one, other = fake_quantize_a8(x, 32, np), fake_quantize_a8(loud, 32, np)
    np.testing.assert_array_equal(one[:, 32:], other[:, 32:])
    assert (one[:, :32] != other[:, :32]).any()


def test_bf16_rounds_half_to_even_on_both() -> None:
    torch = pytest.importorskip("torch")
    x = _rows(3, 64)
    expected = torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(round_bf16(x, np), expected)
    np.testing.assert_array_equal(round_bf16(torch.from_numpy(x), torch).numpy(), expected)
