"""GPTQ against its own algebra, against OBQ done naively, and against rounding to nearest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.compress.base import LinearStats
from octavo.compress.methods.gptq import Gptq, inverse, whole_groups
from octavo.compress.methods.grid import Grid
from octavo.core.errors import ConfigError, FormatError, NumericsError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor

INTS = ("int{}_g16", "int{}_g16_asym", "int{}_g16_offset", "int{}_channel", "int{}_channel_asym")
ALL = (*(name.format(3) for name in INTS), "int4_tensor", "nf4_g16", "iq4nl_g16", "ternary_channel")


def correlated(rows: int, width: int, seed: int) -> Tensor:
    """Inputs [rows, width] that share a few directions, as those of language models do."""
    random = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, width // 4, generator=random, dtype=torch.float64)
    mix = torch.randn(width // 4, width, generator=random, dtype=torch.float64)
    return few @ mix + 0.3 * torch.randn(rows, width, generator=random, dtype=torch.float64)


def weights(rows: int, width: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=random, dtype=torch.float64)


def hessian(X: Tensor) -> Tensor:
    return 2 / len(X) * X.T @ X


def stats_of(X: Tensor) -> LinearStats:
    return LinearStats(tokens=len(X), hessian=hessian(X).float())


def error(W: Tensor, Q: QuantizedTensor, H: Tensor) -> float:
    D = W.double() - torch.from_numpy(Q.dequantize()).double()
    return float((D @ H.double() * D).sum())


def run(
    method: Gptq, name: str, W: Tensor, H: Tensor, perm: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, Q and losses in float64, columns in the order of `perm`."""
    perm = torch.arange(W.shape[1]) if perm is None else perm
    grid = Grid(W, NumberFormat.parse(name))
    return method.quantize(W[:, perm], method.factor(H[perm][:, perm], 1), grid, perm)


def damped(H: Tensor, damp: float) -> Tensor:
    return H + damp * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_losses_sum_to_the_objective(name: str, static: bool) -> None:
    W, H = weights(12, 64, 0), hessian(correlated(200, 64, 1))
    method = Gptq(order="given", block=32, static_groups=static)
    _, Q, losses = run(method, name, W, H)
    D = W - Q
    objective = float((D @ damped(H, 0.01) * D).sum())
    # Sums of a few thousand fp64 products, through a factor of condition below 1e4.
    assert float(2 * losses.sum()) == pytest.approx(objective, rel=1e-10)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_the_block_size_changes_nothing(name: str, static: bool) -> None:
    W, H = weights(12, 96, 2), hessian(correlated(200, 96, 3))
    expected, Q, _ = run(Gptq(order="given", block=96, static_groups=static), name, W, H)
    for block in (1, 16, 40, 64, 1000):
        codes, again, _ = run(Gptq(order="given", block=block, static_groups=static), name, W, H)
        assert torch.equal(codes, expected)
        assert torch.allclose(again, Q, rtol=0, atol=0)


def naive_obq(W: Tensor, H: Tensor, grid: Grid, order: Tensor) -> Tensor:
    """Eqs. 2 and 3 with the inverse itself, its rows and columns eliminated one by one."""
    W, inverse, Q = W.clone(), torch.linalg.inv(H), torch.zeros_like(W)
    for q in order.tolist():
        Q[:, q] = grid.nearest(W[:, q], q // grid.group)[1]
        W -= ((W[:, q] - Q[:, q]) / inverse[q, q]).outer(inverse[q])
        inverse = inverse - inverse[:, q].outer(inverse[q]) / inverse[q, q]
        inverse[q, q] = 1.0  # gone: its row and column are zero, and it is never used again
        W[:, q] = Q[:, q]
    return Q


@pytest.mark.parametrize("order", ["given", "activation"])
@pytest.mark.parametrize("name", ALL)
def test_equals_obq_with_an_explicit_inverse(name: str, order: str) -> None:
    W, H = weights(10, 48, 4), hessian(correlated(150, 48, 5))
    perm = torch.arange(48) if order == "given" else H.diagonal().argsort(descending=True)
    _, Q, _ = run(Gptq(block=16), name, W, H, perm)
    expected = naive_obq(W, damped(H, 0.01), Grid(W, NumberFormat.parse(name)), perm)
    assert torch.equal(Q, expected[:, perm])


@pytest.mark.parametrize("order", ["given", "activation"])
@pytest.mark.parametrize("name", [*ALL, "int4_g16_asym_sfp32", "int4_g16_si6x48", "int8_g16_sbf16"])
def test_uncorrelated_inputs_give_round_to_nearest(name: str, order: str) -> None:
    W = weights(8, 48, 6).float()
    H = torch.diag(torch.linspace(0.5, 3.0, 48))
    target = NumberFormat.parse(name)
    method = Gptq(order="activation" if order == "activation" else "given", block=16)
    made = method.encode(W, target, LinearStats(tokens=9, hessian=H))
    expected = rtn.encode(W.numpy(), target)
    assert made.state("w").keys() == expected.state("w").keys()
    for part, array in expected.state("w").items():
        np.testing.assert_array_equal(made.state("w")[part], array)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("static", [True, False])
def test_weights_on_the_grid_stay(bits: int, static: bool) -> None:
    n = 2**bits
    codes = np.stack([np.random.default_rng(r).permutation(n) for r in range(6)]).astype(np.uint8)
    codes = np.concatenate([codes, codes[::-1]], axis=1)  # every group holds every code
    target = NumberFormat.parse(f"int{bits}_g{n}")
    scales = np.linspace(0.01, 3.0, 12).reshape(6, 2).astype(np.float16)
    on_grid = QuantizedTensor(target, (6, 2 * n), pack_bits(codes, bits), scales)
    W = torch.from_numpy(on_grid.dequantize())
    method = Gptq(order="given", static_groups=static, convention="signed")
    made = method.encode(W, target, stats_of(correlated(4 * n, 2 * n, 7)))
    np.testing.assert_array_equal(made.dequantize(), W.numpy())


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.integers(2, 8),
    st.sampled_from(INTS),
    st.booleans(),
    st.sampled_from([(64, 16), (48, 24), (96, 8)]),
    st.integers(0, 10_000),
)
def test_error_is_at_most_that_of_rounding(
    bits: int, name: str, static: bool, shape: tuple[int, int], seed: int
) -> None:
    width, rows = shape
    W, X = weights(rows, width, seed).float(), correlated(4 * width, width, seed + 1)
    target = NumberFormat.parse(name.format(bits))
    plain = error(W, rtn.encode(W.numpy(), target), hessian(X))
    method = Gptq(static_groups=static, order="activation" if static else "given")
    assert error(W, method.encode(W, target, stats_of(X)), hessian(X)) <= plain


def test_gain_over_rounding_is_the_predicted_one() -> None:
    """Errors uniform in a step: rows * s^2 / 12 * sum 1 / U_ii^2, against tr(H) when rounding."""
    X, W = correlated(512, 64, 8), weights(400, 64, 9)
    method = Gptq(order="given")
    U = method.factor(hessian(X), len(X))
    predicted = float(damped(hessian(X), 0.01).trace() / (1 / U.diagonal() ** 2).sum())
    target, H = NumberFormat.parse("int6_tensor"), damped(hessian(X), 0.01)
    made = method.encode(W.float(), target, stats_of(X))
    gain = error(W, rtn.encode(W.float().numpy(), target), H) / error(W, made, H)
    assert predicted > 2
    assert gain == pytest.approx(predicted, rel=0.1)


def test_dead_inputs_become_zero_and_disturb_nothing() -> None:
    X, W = correlated(200, 32, 10), weights(6, 32, 11).float()
    X[:, [3, 17]] = 0
    W[:, 3] = 100.0  # would take the whole range of its row
    target = NumberFormat.parse("int4_channel")
    made = Gptq().encode(W, target, stats_of(X))
    assert not made.dequantize()[:, [3, 17]].any()
    alive = W.clone()
    alive[:, [3, 17]] = 0
    np.testing.assert_array_equal(made.steps(), rtn.encode(alive.numpy(), target).steps())


def test_dead_inputs_leave_the_damping_alone() -> None:
    """The size of the inputs is of no account, whatever stands on the diagonal of dead ones."""
    X, W = correlated(200, 32, 10), weights(6, 32, 11).float()
    X[:, [3, 17]] = 0
    target = NumberFormat.parse("int4_channel")
    loud, quiet = (Gptq().encode(W, target, stats_of(x)) for x in (X, X * 2.0**-10))
    np.testing.assert_array_equal(loud.codes, quiet.codes)


def test_pruned_weights_have_no_say_in_scales() -> None:
    W, mask = weights(6, 32, 18).float(), torch.ones(6, 32, dtype=torch.bool)
    W[:, 5], mask[:, 5] = 100.0, False
    target = NumberFormat.parse("int4_g16")
    made = Gptq().encode(W, target, stats_of(correlated(200, 32, 19)), mask)
    np.testing.assert_array_equal(made.steps(), rtn.encode((W * mask).numpy(), target).steps())


def test_inputs_that_are_all_dead() -> None:
    target = NumberFormat.parse("int4_channel")
    made = Gptq().encode(weights(4, 16, 0).float(), target, stats_of(torch.zeros(5, 16)))
    assert not made.dequantize().any()


@pytest.mark.parametrize("name", ["int4_g16", "int4_g16_asym", "nf4_g16", "ternary_channel"])
def test_pruned_weights_are_zero_and_are_made_up_for(name: str) -> None:
    X, W = correlated(300, 48, 12), weights(16, 48, 13).float()
    mask = weights(16, 48, 14) > 0
    target = NumberFormat.parse(name)
    made = Gptq().encode(W, target, stats_of(X), mask)
    assert not made.dequantize()[~mask.numpy()].any()
    plain = rtn.encode((W * mask).numpy(), target)
    assert error(W, made, hessian(X)) < error(W, plain, hessian(X))


def test_a_format_without_zero_refuses_a_mask() -> None:
    mask = weights(4, 16, 0) > 0
    stats = stats_of(correlated(50, 16, 0))
    with pytest.raises(FormatError, match="exact zeros"):
        Gptq().encode(weights(4, 16, 1).float(), NumberFormat.parse("int4_g16_offset"), stats, mask)


def test_damping_grows_until_a_factor_exists() -> None:
    """Few tokens: the Hessian is singular, and rounding makes its smallest eigenvalues negative."""
    H = hessian(correlated(8, 64, 15))
    H -= 0.05 * H.diagonal().mean() * torch.eye(64)
    U = Gptq(damp=0.01, damp_increment=0.02).factor(H, 8)
    inverse = torch.linalg.inv(damped(H, 0.07))
    assert torch.allclose(U.T @ U, inverse, rtol=1e-8)  # 0.01 + 3 * 0.02: the first above 0.05


@pytest.mark.parametrize("value", [-2.0, float("nan"), float("inf")])
def test_no_factor_at_all_names_damp_and_tokens(value: float) -> None:
    H = torch.eye(8)
    H[0, 1] = H[1, 0] = value
    stats = LinearStats(tokens=77, hessian=H * 4)
    with pytest.raises(NumericsError, match=r"77 tokens.*damp 0\.01 to 1"):
        Gptq().encode(weights(4, 8, 0).float(), NumberFormat.parse("int4_channel"), stats)


def test_calls_leave_their_inputs_alone() -> None:
    W, stats = weights(4, 32, 0).float(), stats_of(correlated(64, 32, 0))
    assert stats.hessian is not None
    before = W.clone(), stats.hessian.clone()
    Gptq().encode(W, NumberFormat.parse("int4_g16"), stats)
    assert torch.equal(W, before[0])
    assert torch.equal(stats.hessian, before[1])


def test_dynamic_scales_fit_the_updated_weights() -> None:
    """The second group's scale must follow from W after the first group's errors moved it."""
    W, X = weights(8, 32, 16).float(), correlated(100, 32, 17)
    target, H = NumberFormat.parse("int3_g16"), hessian(X).float()
    method = Gptq(order="given", static_groups=False)
    made = method.encode(W, target, LinearStats(tokens=100, hessian=H))
    U = method.factor(H, 100)
    err = (W[:, :16] - torch.from_numpy(made.dequantize()[:, :16])) @ torch.linalg.inv(U[:16, :16])
    moved = W[:, 16:] - err @ U[:16, 16:]
    expected = rtn.encode(moved.numpy(), target)
    np.testing.assert_allclose(made.steps()[:, 1:], expected.steps(), rtol=2**-10)
    assert not np.array_equal(made.steps(), rtn.encode(W.numpy(), target).steps())


@pytest.mark.parametrize("name", ["fp16", "fp8_e4m3_channel", "lut4_channel", "binary_channel"])
def test_formats_without_a_grid_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="no grid"):
        Gptq().encode(
            weights(4, 16, 0).float(), NumberFormat.parse(name), stats_of(weights(9, 16, 0))
        )


@pytest.mark.parametrize("name", ["int4_g16_se4m3", "int4_g16_si6x32"])
def test_scales_shared_by_groups_need_static_groups(name: str) -> None:
    method = Gptq(order="given", static_groups=False)
    with pytest.raises(FormatError, match="static_groups"):
        method.encode(
            weights(4, 32, 0).float(), NumberFormat.parse(name), stats_of(weights(9, 32, 0))
        )


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="static_groups"):
        Gptq(static_groups=False)
    for wrong in ({"damp": -1.0}, {"block": 0}, {"damp_increment": 0.0}):
        with pytest.raises(ConfigError, match="damp must"):
            replace(Gptq(), **wrong)


def test_blocks_never_split_a_group() -> None:
    assert [whole_groups(128, g) for g in (32, 96, 128, 200)] == [128, 96, 128, 200]


@pytest.mark.parametrize("n", [1, 40, 257, 700])
def test_a_triangle_is_inverted_by_halves(n: int) -> None:
    L = torch.linalg.cholesky(damped(hessian(correlated(2 * n + 8, n + 4, n))[:n, :n], 0.01))
    L += torch.ones(n, n, dtype=L.dtype).triu(1)  # is not read
    low = L.tril()
    # Each of n sums of a row's products is off by at most n roundings of its parts.
    bound = n * 2.0**-52 * (low.abs() @ inverse(L).abs())
    assert ((low @ inverse(L) - torch.eye(n, dtype=L.dtype)).abs() <= bound + 2.0**-52).all()
    assert not inverse(L).triu(1).any()
