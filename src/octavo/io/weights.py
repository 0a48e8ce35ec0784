"""`WeightSource`: what a backend loads from, whatever the file was."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.spec.decoder import Role


class RawBlocks(NamedTuple):
    """A row range of a file tensor exactly as stored, for native decoding.

    `type` is a GGUF type name ("F32", "F16", "BF16", "Q4_0", ... "IQ4_XS"); safetensors floats use
    the same three float names. `data` is the file's own memory, uint8 [rows, row_bytes].
    """

    type: str
    data: npt.NDArray[np.uint8]


class TensorView(Protocol):
    """One tensor of a source, in Hugging Face row order, read in row ranges."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def format(self) -> NumberFormat: ...

    def raw(self, start: int, stop: int) -> RawBlocks:
        """Rows [start, stop) as stored. Rows are put in Hugging Face order (copied if permuted)."""

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        """Rows [start, stop) as canonical codes: identical values, never requantized."""

    def float32(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Rows [start, stop) dequantized; 1-d tensors (norms, biases) come whole, `add` applied."""

    def drop(self) -> None:
        """Tell the system that the file's pages of this tensor are no longer needed."""


class WeightSource(Protocol):
    """All tensors of a model by role. Raises ModelFileError naming a missing tensor."""

    def tensor(self, role: Role) -> TensorView: ...

    def has(self, role: Role) -> bool: ...

    def describe(self) -> str:
        """One line on the origin: the file or directory, and its dominant formats."""
