"""Do this build's kernels compute what numpy computes, here, on this processor?

A small weight goes through pack, unpack and every linear kernel of every instruction set that runs
on this machine. Tolerances follow from the length of the sums, not from what was observed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.core.errors import UnsupportedError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
ROWS, INPUTS, GROUP, TOKENS = 40, 96, 32, 3  # 40 rows: the third panel of 16 is half padding
UNIT = 2.0**-24  # half an ulp of 1 in fp32
ZEROS = {"two": 2, "three": 4, "nibble": 8, "five": 16, "six": 32, "byte": 128}


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """One kernel: the largest error over its bound (at most 1 is right)."""

    isa: str
    kernel: str
    error_over_bound: float

    @property
    def ok(self) -> bool:
        return self.error_over_bound <= 1


@dataclass(frozen=True, slots=True)
class _Case:
    """A packed weight and its values."""

    packed: Any
    values: F32


def native_testing() -> Any:
    """The extension's single-kernel hooks. Raises UnsupportedError when it isn't built."""
    try:
        return importlib.import_module("octavo._native").testing
    except ImportError as error:
        raise UnsupportedError(
            f"the native core can't be loaded ({error}): install octavo from a wheel, "
            "or build it with `make native`"
        ) from error


def runnable_isas() -> tuple[str, ...]:
    """Instruction sets that this build has and this processor runs, the best last."""
    return tuple(native_testing().isas())


def check_kernels(isas: tuple[str, ...] | None = None) -> tuple[KernelCheck, ...]:
    """Run everything on `isas` (by default all that run here)."""
    native = native_testing()
    cases = {code: _case(native, code) for code in (*ZEROS, "f16", "bf16", "f32")}
    chosen = isas if isas is not None else runnable_isas()
    return tuple(check for isa in chosen for check in _check_isa(native, isa, cases))


def _check_isa(native: Any, isa: str, cases: dict[str, _Case]) -> Iterator[KernelCheck]:
    for code, case in cases.items():
        same = np.array_equal(case.packed.unpack(isa), case.values)
        yield KernelCheck(isa, f"unpack_{code}", 0.0 if same else np.inf)
    x = _inputs()
    for name, act, code, levels, _, _ in native.rows(isa):
        if levels or code not in cases:
            continue
        case = cases[code]
        found = native.linear(isa, name, case.packed, x, 0, case.packed.panels)[:, :ROWS]
        yield KernelCheck(isa, name, _error(found, case.values, x, act))


def _error(found: F32, weights: F32, x: F32, act: str) -> float:
    """Largest |error| / bound of y = x W^T under an activation format.

    A sum of n products, each rounded at most twice, is off by at most 2 n UNIT sum |products|.
    """
    w, a = _rounded(weights, x, act)
    exact = a @ w.T
    bound = 2 * INPUTS * UNIT * (np.abs(a) @ np.abs(w).T)
    return float((np.abs(found - exact) / bound).max())


def _rounded(weights: F32, x: F32, act: str) -> tuple[F64, F64]:
    """What the format makes of weights and activations (docs/numerics.md)."""
    if act == "abf16":
        return weights.astype(np.float64), _bf16(x)
    if act in ("a8", "a16"):
        return weights.astype(np.float64), _integers(x, 127 if act == "a8" else 32639)
    return weights.astype(np.float64), x.astype(np.float64)


def _integers(x: F32, top: int) -> F64:
    grouped = x.reshape(TOKENS, -1, GROUP)
    peak = np.abs(grouped).max(axis=2, keepdims=True)
    codes = np.rint(grouped * (np.float32(top) / peak))
    codes += (codes + 128) % 256 == 0  # no low byte of a16 is -128; out of reach of a8
    values: F64 = codes.astype(np.float64) * (peak / np.float32(top))
    return values.reshape(x.shape)


def _bf16(x: F32) -> F64:
    """Round half to even to 8 significant bits."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    values: F64 = rounded.view(np.float32).astype(np.float64)
    return values


def _inputs() -> F32:
    return np.random.default_rng(1).standard_normal((TOKENS, INPUTS), dtype=np.float32)


def _stored(values: F32, code: str) -> F32:
    if code == "f16":
        return values.astype(np.float16).astype(np.float32)
    return _bf16(values).astype(np.float32) if code == "bf16" else values


def _case(native: Any, code: str) -> _Case:
    draws = np.random.default_rng(0)
    if code not in ZEROS:
        values = _stored(draws.standard_normal((ROWS, INPUTS), dtype=np.float32), code)
        packed = native.packed(ROWS, INPUTS, code)
        packed.pack_f32(0, values)
        return _Case(packed, values)
    zero = ZEROS[code]
    codes = draws.integers(0, 2 * zero, (ROWS, INPUTS), dtype=np.uint8)
    scales = draws.uniform(0.5, 1, (ROWS, INPUTS // GROUP)).astype(np.float16).astype(np.float32)
    packed = native.packed(ROWS, INPUTS, code, GROUP, zero)
    packed.pack_affine(0, codes, scales)
    values = (codes.astype(np.float32) - np.float32(zero)) * np.repeat(scales, GROUP, axis=1)
    return _Case(packed, values)
