"""SparseGPT against the optimal brain surgeon done naively, against least squares, and joined."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.compress.base import LinearStats
from octavo.compress.methods.gptq import Gptq
from octavo.compress.methods.grid import Grid
from octavo.compress.methods.magnitude import Magnitude
from octavo.compress.methods.sparsegpt import Plain, SparseGpt
from octavo.compress.methods.wanda import Wanda
from octavo.core.errors import ConfigError, FormatError
from octavo.formats import rtn
from octavo.formats.number_format import FP32, NumberFormat

INT4 = NumberFormat.parse("int4_g16")


class Exact(Plain):
    """No rounding, in fp64."""

    def nearest(self, w: Tensor) -> Tensor:
        return w


def correlated(rows: int, width: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, width // 4, generator=random, dtype=torch.float64)
    mix = torch.randn(width // 4, width, generator=random, dtype=torch.float64)
    return few @ mix + 0.3 * torch.randn(rows, width, generator=random, dtype=torch.float64)


def problem(out: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """W and a damped H, fp64."""
    W = torch.randn(out, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    X = correlated(8 * width, width, seed + 1)
    H = 2 / len(X) * X.T @ X
    return W, H + 0.01 * H.diagonal().mean() * torch.eye(width, dtype=torch.float64)


def pruned(method: SparseGpt, W: Tensor, H: Tensor, mask: Tensor | None = None) -> Tensor:
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    alive = torch.zeros(W.shape[1], dtype=torch.bool)
    return method.prune(W, U, Exact(FP32), alive, mask)[1]


def surgeon(W: Tensor, H: Tensor, method: SparseGpt, block: int) -> Tensor:
    """Columns in order, each by eq. 3 with the inverse of what is left of H, all done anew."""
    W, columns = W.clone(), W.shape[1]
    keep = torch.ones_like(W, dtype=torch.bool)
    for j in range(columns):
        inverse = torch.linalg.inv(H[j:, j:])
        if j % block == 0:
            # What each column of the block will cost when its turn comes, with weights as now.
            costs = [torch.linalg.inv(H[c:, c:])[0, 0] for c in range(j, j + block)]
            due = W[:, j : j + block].square() / torch.stack(costs)
            keep[:, j : j + block] = naive_mask(due, method)
        gone = W[:, j].masked_fill(keep[:, j], 0.0)
        W[:, j:] -= (gone / inverse[0, 0])[:, None] * inverse[0]
        W[:, j] = W[:, j].masked_fill(~keep[:, j], 0.0)
    return W


def naive_mask(costs: Tensor, method: SparseGpt) -> Tensor:
    if method.pattern:
        n, m = map(int, method.pattern.split(":"))
        kept = [sorted(range(m), key=lambda i: -row[i])[:n] for row in costs.tolist()]
        return torch.tensor([[i in row for i in range(m)] for row in kept])
    flat = sorted(costs.flatten().tolist())
    return costs > flat[round(method.sparsity * len(flat)) - 1]


@pytest.mark.parametrize(
    ("method", "block"),
    [(SparseGpt(0.5, block=8), 8), (SparseGpt(0.25, block=16), 16), (SparseGpt(pattern="2:4"), 4)],
)
def test_it_is_the_optimal_brain_surgeon_taken_in_order(method: SparseGpt, block: int) -> None:
    W, H = problem(5, 32, 0)
    # Both solve with matrices of condition below 1e4 in fp64.
    torch.testing.assert_close(
        pruned(method, W, H), surgeon(W, H, method, block), rtol=1e-9, atol=1e-9
    )


def test_when_the_first_columns_go_the_rest_is_the_least_squares_solution() -> None:
    W, H = problem(4, 24, 3)
    mask = torch.ones(4, 24, dtype=torch.bool)
    mask[:, :10] = False
    Q = pruned(SparseGpt(), W, H, mask)
    # min over Q_r of (W - Q) H (W - Q)^T: H_rr (Q_r - W_r) = H_rp W_p.
    moved = torch.linalg.solve(H[10:, 10:], H[10:, :10] @ W[:, :10].T).T
    torch.testing.assert_close(Q[:, 10:], W[:, 10:] + moved, rtol=1e-9, atol=1e-9)
    assert not Q[:, :10].any()


@pytest.mark.parametrize("pattern", ["", "2:4", "4x8"])
def test_zeros_are_exact_and_as_many_as_asked_for(pattern: str) -> None:
    W, H = problem(8, 64, 5)
    stats = LinearStats(tokens=99, hessian=H.float())
    for name in ("fp32", "int4_g16", "int8_g32_asym"):
        method = SparseGpt(pattern=pattern, block=32)
        made = method.encode(W.float(), NumberFormat.parse(name), stats)
        zeros = torch.from_numpy(made.dequantize() == 0)
        if name == "fp32":  # a grid has a few zeros of its own
            assert int(zeros.sum()) == zeros.numel() // 2
        assert int(zeros[:, :32].sum()) >= zeros[:, :32].numel() // 2
        if pattern == "2:4":
            assert (zeros.reshape(-1, 4).sum(1) >= 2).all()
        if pattern == "4x8":
            blocks = zeros.reshape(2, 4, 8, 8).permute(0, 2, 1, 3).reshape(16, 32)
            assert int(blocks.all(1).sum()) == 8


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_sparsity_0_changes_nothing(name: str) -> None:
    W, H = problem(8, 32, 7)
    target = NumberFormat.parse(name)
    weight = torch.from_numpy(rtn.encode(W.float().numpy(), target).dequantize())
    H[:, 3] = H[3] = 0.0  # an input that was never other than 0
    stats = LinearStats(tokens=99, hessian=H.float())
    made = SparseGpt(0.0).encode(weight, target, stats)
    assert made.dequantize().tobytes() == weight.numpy().tobytes()


def test_with_a_diagonal_hessian_it_ranks_as_wanda_and_nothing_moves() -> None:
    W, _ = problem(8, 64, 9)
    squares = torch.rand(64, generator=torch.Generator().manual_seed(2)) + 0.1
    stats = LinearStats(tokens=9, hessian=2 * squares.diag(), mean_square=squares)
    method = SparseGpt(damp=0.0, block=64)
    Q = torch.from_numpy(method.encode(W.float(), FP32, stats).dequantize())
    mask = Wanda(scope="tensor").mask(W.float(), stats)
    assert torch.equal(Q, W.float().masked_fill(~mask, 0.0))


def test_a_weight_of_a_dead_input_goes_first() -> None:
    W, H = problem(4, 16, 11)
    H[:, 5] = H[5] = 0.0
    W[:, 5] = 50.0
    made = SparseGpt(0.25).encode(W.float(), FP32, LinearStats(tokens=9, hessian=H.float()))
    assert not made.dequantize()[:, 5].any()


@pytest.mark.parametrize("pattern", ["", "2:4"])
def test_moving_what_stays_beats_only_dropping(pattern: str) -> None:
    W, H = problem(16, 64, 13)
    stats = LinearStats(tokens=9, hessian=H.float(), mean_square=H.diagonal().float() / 2)

    def lost(Q: Tensor) -> float:
        D = W - Q.double()
        return float((D @ H * D).sum())

    ours = torch.from_numpy(SparseGpt(pattern=pattern).encode(W.float(), FP32, stats).dequantize())
    wanda, by_size = Wanda(pattern=pattern), Magnitude(pattern=pattern)
    second = lost(W * wanda.mask(W.float(), stats))
    assert lost(ours) < second < lost(W * by_size.mask(W.float(), stats))


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("pattern", ["", "2:4"])
def test_one_pass_for_both_beats_rounding_afterwards(pattern: str, static: bool) -> None:
    W, H = problem(64, 256, 35)
    stats = LinearStats(tokens=9, hessian=H.float())
    method = SparseGpt(pattern=pattern, static_groups=static)

    def lost(Q: Tensor) -> float:
        D = W - Q.double()
        return float((D @ H * D).sum())

    joint = torch.from_numpy(method.encode(W.float(), INT4, stats).dequantize())
    first = torch.from_numpy(method.encode(W.float(), FP32, stats).dequantize())
    after = torch.from_numpy(rtn.encode(first.numpy(), INT4).dequantize())
    assert lost(joint) < lost(after)


def test_with_every_weight_kept_it_is_gptq_in_the_given_order() -> None:
    W, H = problem(8, 64, 17)
    stats = LinearStats(tokens=9, hessian=H.float())
    for static in (True, False):
        ours = SparseGpt(0.0, static_groups=static).encode(W.float(), INT4, stats)
        theirs = Gptq(order="given", static_groups=static).encode(W.float(), INT4, stats)
        assert ours.codes.tobytes() == theirs.codes.tobytes()
        assert ours.scales is not None
        assert theirs.scales is not None
        assert ours.scales.tobytes() == theirs.scales.tobytes()


def test_the_error_of_a_pass_is_what_its_columns_lost() -> None:
    # GPTQ's identity: the objective is the sum of (w - q)^2 / U_jj^2 over columns, q = 0 where
    # a weight goes.
    W, H = problem(6, 32, 19)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    mask = torch.rand(6, 32, generator=torch.Generator().manual_seed(3)) > 0.5
    grid = Grid(W * mask, INT4)
    method = SparseGpt(static_groups=True)
    _, Q, _ = method.prune(W, U, grid, torch.zeros(32, dtype=torch.bool), mask)
    order = torch.arange(32)
    _, by_gptq, losses = Gptq().quantize(W, U, Grid(W * mask, INT4), order, mask)
    assert torch.equal(Q, by_gptq)
    D = W - Q
    assert float((D @ H * D).sum()) == pytest.approx(float(2 * losses.sum()), rel=1e-10)


def test_what_it_cannot_do_is_refused() -> None:
    W, H = problem(4, 32, 21)
    stats = LinearStats(tokens=9, hessian=H.float())
    with pytest.raises(FormatError, match="exact zeros"):
        SparseGpt().encode(W.float(), NumberFormat.parse("int4_g16_offset"), stats)
    with pytest.raises(FormatError, match="multiples of"):
        SparseGpt(pattern="5:7").encode(W.float(), FP32, stats)
    with pytest.raises(ConfigError, match="damp"):
        replace(SparseGpt(), damp=-1.0)
