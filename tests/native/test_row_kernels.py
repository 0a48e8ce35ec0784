"""Kernels of one row against float64, in units in the last place (u = 2^-24), on every ISA."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from octavo._native import testing
from octavo.formats.activations import (
    fake_quantize_int8,
    padded_width,
    peaked,
    quantize_a8,
    quantize_a16,
)
from support.packed_weights import ISAS

U = 2.0**-24
SIZES = [1, 7, 16, 17, 64, 100, 576]
INF = float("inf")


def row(n: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Largest error relative to the exact value, in units of u."""
    normal = np.abs(want) >= 2.0**-125
    return float((np.abs(got[normal] - want[normal]) / np.abs(want[normal])).max(initial=0) / U)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_rms_norm(isa: str, n: int) -> None:
    """16 lanes of n / 16 roundings, 4 folds, then mean, sum, root, quotient and two products."""
    x, w = row(n, 1, 5), row(n, 2)
    want = x.astype(np.float64) / math.sqrt((x.astype(np.float64) ** 2).mean() + np.float32(1e-6))
    assert relative(testing.rms_norm(isa, x, None, 1e-6), want) <= n / 16 + 12
    assert relative(testing.rms_norm(isa, x, w, 1e-6), want * w) <= n / 16 + 13


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group", [32, 64])
def test_quantize_a8(isa: str, group: int) -> None:
    k, k_pad = 150, 192
    x = row(k, 3, 4)
    x[64:128] = 0
    q, scale, total = testing.quantize_a8(isa, x, k_pad, group)
    padded = np.concatenate([x, np.zeros(k_pad - k, np.float32)]).reshape(-1, group)
    peak = np.abs(padded).max(1, keepdims=True)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    np.testing.assert_array_equal(q.reshape(-1, group), np.rint(padded * inverse))
    np.testing.assert_array_equal(scale, (peak / np.float32(127))[:, 0])
    np.testing.assert_array_equal(total, q.astype(int).reshape(-1, 32).sum(1))


@pytest.mark.parametrize("isa", ISAS)
def test_quantize_a8_rounds_ties_to_even_and_survives_extremes(isa: str) -> None:
    x = np.zeros(32, np.float32)
    x[:5] = [127, 0.5, 1.5, 2.5, -0.5]
    q, scale, _ = testing.quantize_a8(isa, x, 32, 32)
    assert list(q[:5]) == [127, 0, 2, 2, 0]
    assert scale[0] == 1
    for tiny in (1e-45, 2.0**-119):
        q, scale, total = testing.quantize_a8(isa, np.full(32, tiny, np.float32), 32, 32)
        assert not q.any()
        assert not scale.any()
        assert not total.any()
    q, scale, _ = testing.quantize_a8(isa, np.full(32, -3e38, np.float32), 32, 32)
    assert (q == -127).all()
    assert np.isfinite(scale).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("k", "group"), [(180, 64), (33, 32), (576, 64), (576, 32)])
@pytest.mark.parametrize("amax", [None, 1.5, 2.0**-110, 1e-37, 0.0])
def test_one_scale_for_a_row_is_that_of_the_numpy_twin(
    isa: str, k: int, group: int, amax: float | None
) -> None:
    """Its own largest input, or one that was given: what is beyond becomes 127."""
    x, k_pad = row(k, 4, 3), -(-k // group) * group
    top = np.float32(np.abs(x).max() if amax is None else amax)
    assert testing.peak(isa, x) == np.abs(x).max()
    q, scale, total = testing.quantize_int8(isa, x, k_pad, group, float(top))
    assert (scale == scale[0]).all()
    want = fake_quantize_int8(x, np.full(1, top, np.float32), np)
    np.testing.assert_array_equal(q[:k].astype(np.float32) * scale[0], want)
    assert not q[k:].any()
    np.testing.assert_array_equal(total, q.astype(int).reshape(-1, 32).sum(1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("k", "group"), [(180, 64), (33, 32), (576, 64), (576, 32)])
def test_every_rounding_equals_the_numpy_twin(isa: str, k: int, group: int) -> None:
    k_pad = padded_width(k)
    for scale in (1, 1e-30, 2.0**-100, 2.0**-113, 2.0**-118, 1e-37, 1e-44, 0, 1e15):
        x = row(k, 9) * np.float32(scale)
        x[k // 2] *= 30
        q, want_scale = quantize_a8(x, group, np)
        got, got_scale, _ = testing.quantize_a8(isa, x, k_pad, group)
        np.testing.assert_array_equal(got, q)
        np.testing.assert_array_equal(got_scale, want_scale)
        q16, want_scale = quantize_a16(x, group, np)
        hi_lo, got_scale, total = testing.quantize_a16(isa, x, k_pad, group)
        np.testing.assert_array_equal(256 * hi_lo[0].astype(int) + hi_lo[1], q16)
        np.testing.assert_array_equal(got_scale, want_scale)
        np.testing.assert_array_equal(total, hi_lo.astype(int).reshape(2, -1, 32).sum(2))
        assert np.abs(hi_lo.astype(int)).max() <= 127
        for ratio in (2, 4, 8, 16, 24):
            assert testing.peaked(isa, x, ratio) == bool(peaked(x, ratio, np))


@pytest.mark.parametrize("isa", ISAS)
def test_a16_holds_the_ends_of_its_range(isa: str) -> None:
    x = np.zeros(32, np.float32)
    x[:7] = [32639, -32639, 128, -128, -127.5, 0.5, 1.5]
    hi_lo, scale, _ = testing.quantize_a16(isa, x, 32, 32)
    assert scale[0] == 1
    codes = 256 * hi_lo[0].astype(int) + hi_lo[1]
    # 128 would be 256 - 128, and -128 has the low byte -128: both move up by one
    assert list(codes[:7]) == [32639, -32639, 129, -127, -127, 0, 2]
    q, scale, _ = testing.quantize_a16(isa, np.full(32, -3e38, np.float32), 32, 32)
    assert (q[0] == -127).all()
    assert (q[1] == -127).all()
    assert np.isfinite(scale).all()


@pytest.mark.parametrize("isa", ISAS)
def test_round_bf16_over_every_exponent(isa: str) -> None:
    bits = np.random.default_rng(4).integers(0, 2**32, 1 << 16, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(65536, dtype=np.uint32) << 16) | 0x8000
    for x in (bits.view(np.float32), ties.view(np.float32)):
        got = testing.round_bf16(isa, x, len(x)).view(ml_dtypes.bfloat16)
        with np.errstate(invalid="ignore"):
            want = x.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        known = ~np.isnan(want)
        np.testing.assert_array_equal(got[known].view(np.uint16), want[known].view(np.uint16))
    padded = testing.round_bf16(isa, row(33), 64)
    assert not padded[33:].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("half", [4, 16, 32, 40])
def test_rope_is_the_three_operations_of_the_formula(isa: str, half: int) -> None:
    x, angle = row(2 * half + 6, 5), row(half, 6)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[:half], x[half : 2 * half]
    want = np.concatenate([a * cos - b * sin, b * cos + a * sin, x[2 * half :]])
    np.testing.assert_array_equal(testing.rope(isa, x, cos, sin), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_add_and_scale(isa: str, n: int) -> None:
    x, y = row(n, 7), row(n, 8)
    np.testing.assert_array_equal(testing.add(isa, x, y), x + y)
    np.testing.assert_array_equal(testing.scale(isa, x, 1.7), x * np.float32(1.7))


def exp_of(isa: str, x: np.ndarray) -> np.ndarray:
    """exp through sum_exp: one value at a time, so the fp64 sum is the value itself."""
    return np.array([testing.sum_exp(isa, v[None], 0.0, 1.0) for v in x])


@pytest.mark.parametrize("isa", ISAS)
def test_exp_within_two_ulp(isa: str) -> None:
    """2 ulp = 4 u at worst (just above a power of two)."""
    x = np.linspace(-87.3, 88.7, 40001).astype(np.float32)
    assert relative(exp_of(isa, x), np.exp(x.astype(np.float64))) <= 4
    near = row(4000, 9, 0.5)
    assert relative(exp_of(isa, near), np.exp(near.astype(np.float64))) <= 4
    edges = np.array([0.0, -0.0, -INF, -88, -1e30, INF, 89], np.float32)
    np.testing.assert_array_equal(exp_of(isa, edges), [1, 1, 0, 0, 0, INF, INF])
    assert math.isnan(testing.sum_exp(isa, np.array([np.nan], np.float32), 0.0, 1.0))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 15, 16, 33, 5000])
def test_sum_exp(isa: str, n: int) -> None:
    """Argument: two roundings of at most |t| u each; exp: 4 u; the fp64 sum is as good as exact."""
    x = row(n, 10, 6)
    top = float(x.max())
    t = (x.astype(np.float64) - top) * np.float32(1.25)
    exact = np.exp(t)
    bound = (exact * (2 * np.abs(t) + 4.01) * U).sum()
    assert abs(testing.sum_exp(isa, x, top, 1.25) - exact.sum()) <= bound


@pytest.mark.parametrize("isa", ISAS)
def test_softcap(isa: str) -> None:
    """Of tanh: below 5/8 the polynomial (3 u), above 1 - 2 / (e + 1) (its error shrinks); plus the
    quotient, whose error tanh passes on at most whole, and the product."""
    x = np.concatenate([row(5000, 11, 40), row(3000, 12, 1e-3), np.linspace(-40, 40, 7001)])
    x = x.astype(np.float32)
    for cap in (30.0, 50.0, 1.0):
        want = cap * np.tanh(x.astype(np.float64) / cap)
        assert relative(testing.softcap(isa, x, cap), want) <= 8
    edges = testing.softcap(isa, np.array([0.0, INF, -INF, 1e30], np.float32), 30.0)
    np.testing.assert_array_equal(edges, [0, 30, -30, 30])


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + np.exp(-2 * u))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 16, 31, 4001])
def test_act_mul(isa: str, n: int) -> None:
    """An error in the argument of exp is one in its result: 4 roundings, each |2 u(x)| u."""
    gate, up = row(n, 13, 4), row(n, 14)
    wide = gate.astype(np.float64)
    silu = wide / (1 + np.exp(-wide))
    assert relative(testing.act_mul(isa, "silu", gate, up), silu * up) <= 4 + 3
    size = 2 * math.sqrt(2 / math.pi) * (np.abs(wide) + 0.044715 * np.abs(wide) ** 3)
    got, want = testing.act_mul(isa, "gelu_tanh", gate, up), gelu_tanh(wide) * up
    bound = np.abs(want) * (5 * size + 8) * U + 2.0**-126
    assert (np.abs(got - want) <= bound).all()
    far = np.array([100.0, -100.0, INF], np.float32)
    one = np.ones(3, np.float32)
    for act in ("silu", "gelu_tanh"):
        got = testing.act_mul(isa, act, far, one)
        assert got[0] == 100
        assert abs(got[1]) < 1e-30
        assert got[2] == INF


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 5, 16, 40, 1000])
def test_argmax_takes_the_lowest_index(isa: str, n: int) -> None:
    rng = np.random.default_rng(15)
    for _ in range(20):
        x = rng.integers(-3, 4, n).astype(np.float32)
        assert testing.argmax(isa, x) == (int(x.argmax()), float(x.max()))
    x = np.full(n, -INF, np.float32)
    assert testing.argmax(isa, x) == (0, -INF)
    x[n // 2] = np.nan
    x[n - 1] = 1
    assert testing.argmax(isa, x) == (n - 1, 1.0)


@pytest.mark.parametrize("isa", [i for i in ISAS if i != "generic"])
def test_every_isa_gives_the_generic_bits(isa: str) -> None:
    for n in [1, 16, 50, 333]:
        x, y = row(n, n, 20), row(n, n + 1, 20)

        def all_of(one: str, x: np.ndarray = x, y: np.ndarray = y) -> list[np.ndarray]:
            return [
                testing.rms_norm(one, x, y, 1e-5),
                testing.softcap(one, x, 7.0),
                testing.act_mul(one, "silu", x, y),
                testing.act_mul(one, "gelu_tanh", x, y),
                np.array([testing.sum_exp(one, x, 3.0, 0.7)]),
                *testing.quantize_a8(one, x, 384, 64),
                *testing.quantize_a16(one, x, 384, 64),
            ]

        for got, want in zip(all_of(isa), all_of("generic"), strict=True):
            assert got.tobytes() == want.tobytes()
