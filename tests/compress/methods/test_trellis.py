from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from octavo import _native  # noqa: E402
from octavo.compress.base import LinearStats  # noqa: E402
from octavo.compress.methods.gptq import Gptq  # noqa: E402
from octavo.compress.methods.trellis import Trellis, objective  # noqa: E402
from octavo.core.errors import ConfigError, FormatError, NumericsError  # noqa: E402
from octavo.formats import rtn, trellis  # noqa: E402
from octavo.formats.number_format import NumberFormat  # noqa: E402
from support.number_formats import normal_weight  # noqa: E402

F32 = npt.NDArray[np.float32]
FORMAT = NumberFormat.parse("trellis2_g64")


def correlated(width: int, seed: int = 0, tokens: int = 512) -> LinearStats:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width)) / np.sqrt(width) + np.eye(width)
    x = (rng.standard_normal((tokens, width)) @ mix).astype(np.float32)
    return LinearStats(tokens=tokens, hessian=torch.from_numpy(2 / tokens * x.T @ x))


def loss(weight: F32, made: F32, stats: LinearStats) -> float:
    error = torch.from_numpy(weight - made)
    return float(objective(error.double(), stats.hessian.double()).sum())


def searched(x: F32, u: F32, tries: int) -> npt.NDArray[np.uint64]:
    words = np.empty(len(x), np.uint64)
    _native.trellis_encode(x, u, trellis.levels(), tries, words)
    return words


def path_of(word: int) -> F32:
    packed = np.array([word], "<u8").view(np.uint8)[None]
    return trellis.levels()[trellis.windows(packed)[0]]


def loss_of(x: F32, u: F32, values: F32) -> float:
    """What GPTQ says that a run costs: errors e with e U = x - values, squared."""
    error = np.linalg.solve(u.T.astype(np.float64), (x - values).astype(np.float64))
    return float(error @ error)


def survivors(x: F32, u: F32, state: int) -> tuple[float, int]:
    """The search read slowly, in fp64: each survivor with its own rest of the run."""
    levels = trellis.levels().astype(np.float64)
    alive = {state: (0.0, x.astype(np.float64), 0)}
    for i in range(32):
        into: dict[int, tuple[float, npt.NDArray[np.float64], int]] = {}
        for window in range(256):
            if window % 64 not in alive:
                continue
            cost, rest, word = alive[window % 64]
            e = (rest[i] - levels[window]) / u[i, i]
            if window // 4 not in into or cost + e * e < into[window // 4][0]:
                moved = rest - e * u[i]
                into[window // 4] = (cost + e * e, moved, word | (window & 3) << 2 * i)
        alive = into
    return alive[state][0], alive[state][2]


def feedback(seed: int) -> F32:
    stats = correlated(32, seed)
    return Gptq().factor(stats.hessian, 512).contiguous().numpy()


@pytest.mark.parametrize("seed", range(3))
def test_the_search_is_the_slow_one(seed: int) -> None:
    x, u = normal_weight((2, 32), seed, trellis.SPREAD), feedback(seed)
    found = searched(x, u, 64)
    for row, word in zip(x, found.tolist(), strict=True):
        cost, slow = survivors(
            row, u, word & 63
        )  # of the rings that close where the found one does
        assert slow == word
        # 32 steps of some 4 roundings, fp32 against fp64
        assert loss_of(row, u, path_of(word)) == pytest.approx(cost, rel=256 * 2.0**-24)


def test_without_feedback_it_is_the_shortest_path() -> None:
    x, eye = normal_weight((30, 32), 5, trellis.SPREAD), np.eye(32, dtype=np.float32)
    best = [loss_of(row, eye, path_of(w)) for row, w in zip(x, searched(x, eye, 64), strict=True)]
    two = trellis.levels()[trellis.nearest(x, np)]
    plain = ((two - x).astype(np.float64) ** 2).sum(1)
    assert (np.array(best) <= plain * (1 + 2.0**-16)).all()
    assert sum(best) < plain.sum()


def test_more_tries_are_never_worse_and_rows_do_not_meet() -> None:
    x, u = normal_weight((20, 32), 6, trellis.SPREAD), feedback(1)
    losses = [
        [loss_of(row, u, path_of(w)) for row, w in zip(x, searched(x, u, n), strict=True)]
        for n in (1, 4, 16, 64)
    ]
    for fewer, more in pairwise(losses):
        assert all(b <= a * (1 + 2.0**-16) for a, b in zip(fewer, more, strict=True))
    np.testing.assert_array_equal(searched(x[3:5], u, 4), searched(x, u, 4)[3:5])


def test_the_search_takes_what_it_says() -> None:
    x, u = np.zeros((2, 32), np.float32), np.eye(32, dtype=np.float32)
    for bad in (0, 65):
        with pytest.raises(ValueError, match="1 to 64 tries"):
            searched(x, u, bad)
    with pytest.raises(ValueError, match=r"x \[n, 32\]"):
        searched(np.zeros((2, 16), np.float32), u, 4)


@pytest.mark.parametrize("name", ["trellis2_g64", "trellis2_channel", "trellis2_g32_sbf16"])
def test_the_order_of_methods_at_two_bits(name: str) -> None:
    weight, stats = normal_weight((48, 256), 1), correlated(256)
    int2 = NumberFormat.parse("int2_g64")
    W, format = torch.from_numpy(weight), NumberFormat.parse(name)
    nearest = loss(weight, rtn.encode(weight, int2).dequantize(), stats)
    gptq = loss(weight, Gptq().encode(W, int2, stats).dequantize(), stats)
    path = loss(weight, rtn.encode(weight, format).dequantize(), stats)
    found = loss(weight, Trellis().encode(W, format, stats).dequantize(), stats)
    assert found < 0.6 * gptq < gptq < nearest
    assert found < 0.6 * path < path < nearest


def test_sweeps_and_their_fits_are_never_worse() -> None:
    weight, stats = normal_weight((16, 128), 2), correlated(128)
    W = torch.from_numpy(weight)
    damped = LinearStats(tokens=512, hessian=stats.hessian.clone())
    damped.hessian.diagonal().add_(0.01 * stats.hessian.diagonal().mean())
    losses = [
        loss(weight, Trellis(sweeps=n).encode(W, FORMAT, stats).dequantize(), damped)
        for n in range(4)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.97 * losses[0]


def test_a_diagonal_hessian_is_the_plain_search() -> None:
    weight = normal_weight((8, 128), 3)
    stats = LinearStats(tokens=9, hessian=torch.eye(128))
    made = Trellis(sweeps=0, tries=64, spread=1.0).encode(torch.from_numpy(weight), FORMAT, stats)
    plain = rtn.encode(weight, FORMAT)
    np.testing.assert_array_equal(made.steps(), plain.steps())
    ours, theirs = ((t.dequantize() - weight) ** 2 for t in (made, plain))
    assert 0.85 * theirs.sum() < ours.sum() < theirs.sum()


def test_threads_leave_no_trace() -> None:
    weight, stats = torch.from_numpy(normal_weight((7, 96), 4)), correlated(96)
    format, before = NumberFormat.parse("trellis2_g32"), torch.get_num_threads()
    made = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found = Trellis().encode(weight, format, stats)
        torch.set_num_threads(before)
        made.append(found.codes)
    np.testing.assert_array_equal(*made)


def test_what_is_never_seen_and_what_is_zero() -> None:
    weight, stats = normal_weight((8, 64), 5), correlated(64)
    weight[2] = 0
    stats.hessian[:, 5] = stats.hessian[5] = 0
    made = Trellis().encode(torch.from_numpy(weight), FORMAT, stats).dequantize()
    assert np.isfinite(made).all()
    assert not made[2].any()


@pytest.mark.parametrize("name", ["trellis2_g32_su8x64", "trellis2_tensor", "trellis2_g32_se4m3"])
def test_scales_that_groups_share_stay(name: str) -> None:
    weight, stats, format = normal_weight((8, 64), 6), correlated(64), NumberFormat.parse(name)
    made = Trellis(spread=1.0).encode(torch.from_numpy(weight), format, stats)
    np.testing.assert_array_equal(made.steps(), rtn.encode(weight, format).steps())
    assert loss(weight, made.dequantize(), stats) < loss(
        weight, rtn.encode(weight, format).dequantize(), stats
    )


def test_what_it_refuses() -> None:
    weight, stats = torch.zeros(4, 64), correlated(64)
    with pytest.raises(FormatError, match="int2_g64 is no trellis; it encodes trellis2_g64"):
        Trellis().encode(weight, NumberFormat.parse("int2_g64"), stats)
    with pytest.raises(FormatError, match="no exact zeros"):
        Trellis().encode(weight, FORMAT, stats, torch.ones(4, 64, dtype=torch.bool))
    with pytest.raises(FormatError, match="runs of 32"):
        Trellis().encode(torch.zeros(4, 80), NumberFormat.parse("trellis2_channel"), correlated(80))
    broken = LinearStats(tokens=3, hessian=torch.full((64, 64), float("nan")))
    with pytest.raises(NumericsError, match="no Cholesky factor"):
        Trellis().encode(torch.ones(4, 64), FORMAT, broken)
    for options in ({"tries": 0}, {"tries": 65}, {"sweeps": -1}, {"spread": 0.0}, {"damp": -1.0}):
        with pytest.raises(ConfigError, match="trellis: "):
            Trellis(**options)
