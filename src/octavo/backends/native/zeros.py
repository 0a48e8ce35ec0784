"""How the zeros that a file leaves out are held: left out of the panels too, or as codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo import _native
from octavo.core.errors import UnsupportedError
from octavo.formats.layouts import BLOCKS, DENSE, NATIVE, TRITS
from octavo.formats.number_format import NumberFormat
from octavo.io.weights import TensorView

BITS = (4, 8)  # of codes that kernels multiply so
SPARSE_ISAS = ("avx512vnni", "avx512bf16")  # whose rows of 2:4 are hand-written
_HELD = (NATIVE, BLOCKS)


@dataclass(frozen=True, slots=True)
class Zeros:
    """Of one matrix.

    layout  the file's; held: the panels', dense, 2:4 or 16x32.
    mask    of held blocks: a bit each, as the file has them.
    why     panels are dense and the file isn't; "" otherwise.
    """

    layout: str = DENSE
    held: str = DENSE
    mask: bytes = b""
    why: str = ""

    def set_blocks(self, plan: _native.PackPlan) -> None:
        """Tell the plan of held blocks which are there."""
        if self.held == BLOCKS:
            bits = np.frombuffer(self.mask, np.uint8)
            plan.set_blocks(bits.reshape(plan.n // 16, -1))


@dataclass(frozen=True, slots=True)
class Run:
    """What the kernels see of a matrix: its format, activations, instruction set, whether it is
    multiplied in the format of its file, and whether outliers go past the integers."""

    target: NumberFormat
    integers: bool
    isa: str
    kept: bool
    outliers: bool


def zeros_of(view: TensorView, run: Run) -> Zeros:
    """How panels hold the zeros of a matrix."""
    layout = getattr(view, "layout", DENSE)
    if layout in (DENSE, TRITS):
        return Zeros()
    why = _reason(layout, run)
    if why:
        return Zeros(layout, why=why)
    mask: npt.NDArray[np.uint8] | None = getattr(view, "mask", None)
    held = np.ascontiguousarray(mask).tobytes() if layout == BLOCKS and mask is not None else b""
    return Zeros(layout, layout, held)


def check_strict(found: Iterable[Zeros]) -> None:
    """Raises UnsupportedError where a kernel leaves out such zeros, but not these."""
    dense = (zeros for zeros in found if zeros.layout in _HELD and zeros.why)
    why = sorted({f"{zeros.layout}: {zeros.why}" for zeros in dense})
    if why:
        raise UnsupportedError(
            f"strict: zeros of pruned matrices are multiplied as any weight ({'; '.join(why)}); "
            "leave strict out to run them so, or compress to a symmetric format of 4 or 8 bits"
        )


def _reason(layout: str, run: Run) -> str:
    target = run.target
    if layout not in _HELD:
        return "no kernel leaves out such zeros"
    if not run.kept:
        return f"requantized to {target}"
    if target.kind != "int" or target.variant or target.zero != "none" or target.bits not in BITS:
        return f"no kernel leaves out zeros of {target}"
    if not run.integers:
        return "only products by integer activations leave out zeros"
    if run.outliers:
        return "llm_int8 multiplies outliers by dense panels"
    if layout == NATIVE and run.isa not in SPARSE_ISAS:
        return f"{run.isa} has no hand-written kernel for it"
    return ""
