from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from octavo.formats.floats import float_dtype, largest, round_bf16, round_float, to_storage

F32 = npt.NDArray[np.float32]
NARROW = ("fp16", "bf16", "e4m3", "e5m2")


def _finite(variant: str) -> F32:
    """Every finite number of a type, ascending."""
    dtype = float_dtype(variant)
    codes = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}")
    values = codes.view(dtype).astype(np.float32)
    return np.unique(values[np.isfinite(values)])


def _probes(variant: str) -> F32:
    """Every number, every midpoint of neighbours, and what lies beside the midpoints."""
    values = _finite(variant)
    middle = ((values[:-1].astype(np.float64) + values[1:]) / 2).astype(np.float32)
    inf = np.float32(np.inf)
    return np.concatenate([values, middle, np.nextafter(middle, inf), np.nextafter(middle, -inf)])


@pytest.mark.parametrize("variant", NARROW)
def test_rounding_is_the_types_own_cast_exhaustively(variant: str) -> None:
    probes = _probes(variant)
    expected = probes.astype(float_dtype(variant)).astype(np.float32)
    np.testing.assert_array_equal(round_float(probes, variant, np), expected)


@pytest.mark.parametrize("variant", NARROW)
def test_every_number_is_its_own_rounding_and_survives_storage(variant: str) -> None:
    values = _finite(variant)
    np.testing.assert_array_equal(round_float(values, variant, np), values)
    np.testing.assert_array_equal(to_storage(values, variant).astype(np.float32), values)
    assert values[-1] == largest(variant)


@pytest.mark.parametrize("variant", [*NARROW, "e8m0", "fp32"])
def test_torch_gives_the_same_bits(variant: str) -> None:
    torch = pytest.importorskip("torch")
    probes = _probes("bf16") if variant in ("e8m0", "fp32") else _probes(variant)
    ours = round_float(probes, variant, np)
    theirs = round_float(torch.from_numpy(probes), variant, torch).numpy()
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


def test_overflow() -> None:
    big = np.array([65519.9, 65520.0, -1e38], np.float32)
    assert round_float(big, "fp16", np).tolist() == [65504, np.inf, -np.inf]
    assert round_float(big, "e4m3", np).tolist() == [448, 448, -448]
    assert round_float(np.array([3.4e38], np.float32), "bf16", np)[0] == np.inf


def test_nan_stays_nan() -> None:
    nan = np.array([np.nan], np.float32)
    assert np.isnan(round_bf16(nan, np)).all()
    assert np.isnan(round_float(nan, "fp16", np)).all()


def test_e8m0_is_the_smallest_power_of_two_not_below() -> None:
    x = np.array([1.0, 1.0000001, 1.5, 2.0, 0.0, 1e-45, 3e38], np.float32)
    expected = [1, 2, 2, 2, 2.0**-126, 2.0**-126, 2.0**127]
    assert round_float(x, "e8m0", np).tolist() == expected
