from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from octavo.core.errors import FormatError
from octavo.formats import trellis
from octavo.formats.number_format import NumberFormat
from octavo.formats.packing import pack_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rtn import encode, fake_quantize
from support.number_formats import normal_weight

F32 = npt.NDArray[np.float32]

# methods.md section 1: squared error of the best 2-bit scalar code of a normal distribution, and
# the bound that no code at 2 bits can beat.
LLOYD_MAX, RATE_DISTORTION = 0.1175, 0.0625


def rotated(word: int, by: int) -> int:
    return (word >> by | word << 64 - by) & (1 << 64) - 1


def packed_words(words: list[int]) -> npt.NDArray[np.uint8]:
    return np.array(words, "<u8").view(np.uint8)[None]


def test_levels_are_normal_quantiles_in_integers() -> None:
    levels = trellis.levels()
    assert not levels.flags.writeable
    assert np.array_equal(levels, np.rint(levels))
    assert np.array_equal(np.sort(levels), -np.sort(levels)[::-1])
    assert (levels.min(), levels.max()) == (-127, 127)
    # the first and the last, and a sum that a change of any one would change: files depend on them
    assert levels[:4].tolist() == [-62, 37, 3, -30]
    assert int(np.arange(256) @ levels.astype(np.int64)) == -7344


def test_ways_out_of_a_state_are_far_apart() -> None:
    ordered = np.sort(trellis.levels())
    rank = np.searchsorted(ordered, trellis.levels()).reshape(4, 64)  # [new code, state]
    assert (np.diff(np.sort(rank, axis=0), axis=0) > 48).all()  # quarters, but for equal levels


def test_every_window_at_every_place_is_read_from_the_ring() -> None:
    for shift in range(32):
        words = [rotated(window, 64 - 2 * shift if shift else 0) for window in range(256)]
        found = trellis.windows(packed_words(words)).reshape(256, 32)
        np.testing.assert_array_equal(found[:, shift], np.arange(256))


def test_windows_of_random_words_are_rotations() -> None:
    words = np.random.default_rng(3).integers(0, 2**64, 50, np.uint64)
    found = trellis.windows(words.astype("<u8").view(np.uint8)[None]).reshape(50, 32)
    slow = [[rotated(int(word), 2 * i) & 255 for i in range(32)] for word in words]
    np.testing.assert_array_equal(found, slow)


def test_a_path_is_a_ring_of_codes() -> None:
    x = normal_weight((64, 32), seed=1, scale=trellis.SPREAD)
    path = trellis.nearest(x, np).astype(np.uint8)
    packed = pack_bits(path & 3, 2)
    np.testing.assert_array_equal(trellis.windows(packed), path)


def test_a_path_of_levels_is_found_again() -> None:
    words = np.random.default_rng(5).integers(0, 2**64, 40, np.uint64)
    path = trellis.windows(words.astype("<u8").view(np.uint8)[None]).reshape(40, 32)
    x = trellis.levels()[path]
    found = trellis.levels()[trellis.nearest(x, np)]
    np.testing.assert_array_equal(found, x)


def exhaustive(x: F32) -> float:
    """The least squared error of a run over all 64 states that its ring may close in."""
    levels, best = trellis.levels().astype(np.float64), np.inf
    for start in range(64):
        cost = np.where(np.arange(64) == start, 0.0, np.inf)
        for weight in x:
            into = np.tile(cost, 4) + (weight - levels) ** 2
            cost = into.reshape(64, 4).min(1)
        best = min(best, float(cost[start]))
    return best


def test_the_two_searches_come_near_the_best_ring() -> None:
    x = normal_weight((40, 32), seed=2, scale=trellis.SPREAD)
    found = ((trellis.levels()[trellis.nearest(x, np)] - x).astype(np.float64) ** 2).sum(1)
    best = np.array([exhaustive(row) for row in x])
    assert (found >= best * (1 - 1e-6)).all()
    assert best.sum() < found.sum() < 1.1 * best.sum()


@pytest.mark.parametrize("name", ["trellis2_g64", "trellis2_channel"])
def test_error_of_normal_weights_is_between_scalar_codes_and_the_bound(name: str) -> None:
    weight = normal_weight((64, 1024), seed=0)
    error = encode(weight, NumberFormat.parse(name)).dequantize() - weight
    share = float((error**2).mean() / (weight**2).mean())
    assert RATE_DISTORTION < share < 0.085 < LLOYD_MAX


@pytest.mark.parametrize("name", ["trellis2_g32", "trellis2_channel_sbf16", "trellis2_tensor"])
def test_torch_finds_the_same_path(name: str) -> None:
    torch = pytest.importorskip("torch")
    format, weight = NumberFormat.parse(name), normal_weight((3, 128), seed=6)
    theirs = fake_quantize(torch.from_numpy(weight), format, torch).numpy()
    np.testing.assert_array_equal(theirs, encode(weight, format).dequantize())


def test_more_runs_than_are_searched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal_weight((10, 32), seed=7, scale=trellis.SPREAD)
    whole = trellis.nearest(x, np)
    monkeypatch.setattr(trellis, "_AT_A_TIME", 3)
    np.testing.assert_array_equal(trellis.nearest(x, np), whole)


def test_state_comes_back_without_a_codebook() -> None:
    tensor = encode(normal_weight((4, 64)), NumberFormat.parse("trellis2_g32"))
    state = tensor.state("w")
    assert sorted(state) == ["w.codes", "w.scales"]
    again = QuantizedTensor.from_state(state, "w", tensor.format, tensor.shape)
    np.testing.assert_array_equal(again.dequantize(), tensor.dequantize())
    np.testing.assert_array_equal(tensor.rows(1, 3).dequantize(), tensor.dequantize()[1:3])


@pytest.mark.parametrize("name", ["trellis2_g48", "trellis2_g64_asym", "trellis2_g16_si6x256"])
def test_formats_that_are_not(name: str) -> None:
    with pytest.raises(FormatError, match=r"runs of 32|zero points"):
        NumberFormat.parse(name)


@pytest.mark.parametrize("name", ["trellis2_channel", "trellis2_tensor", "trellis2_g32"])
def test_a_width_of_no_whole_runs_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match=r"80 inputs don't split into runs of 32"):
        encode(normal_weight((2, 80)), NumberFormat.parse(name))
