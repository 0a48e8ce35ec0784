"""`StoredTensor`: one tensor of a file by name, type, shape and place; GGUF's table of types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from octavo.io.mapping import U8, FileMapping


class BlockType(NamedTuple):
    """A tensor type: its id in GGUF files, and blocks of `size` bytes for `elements` weights."""

    id: int
    elements: int
    size: int


# Types that GGUF files may hold. Those that `gguf_blocks` doesn't decode can still be copied.
BLOCK_TYPES = {
    "F32": BlockType(0, 1, 4),
    "F16": BlockType(1, 1, 2),
    "Q4_0": BlockType(2, 32, 18),
    "Q4_1": BlockType(3, 32, 20),
    "Q5_0": BlockType(6, 32, 22),
    "Q5_1": BlockType(7, 32, 24),
    "Q8_0": BlockType(8, 32, 34),
    "Q2_K": BlockType(10, 256, 84),
    "Q3_K": BlockType(11, 256, 110),
    "Q4_K": BlockType(12, 256, 144),
    "Q5_K": BlockType(13, 256, 176),
    "Q6_K": BlockType(14, 256, 210),
    "Q8_K": BlockType(15, 256, 292),
    "IQ2_XXS": BlockType(16, 256, 66),
    "IQ2_XS": BlockType(17, 256, 74),
    "IQ3_XXS": BlockType(18, 256, 98),
    "IQ1_S": BlockType(19, 256, 50),
    "IQ4_NL": BlockType(20, 32, 18),
    "IQ3_S": BlockType(21, 256, 110),
    "IQ2_S": BlockType(22, 256, 82),
    "IQ4_XS": BlockType(23, 256, 136),
    "I8": BlockType(24, 1, 1),
    "I16": BlockType(25, 1, 2),
    "I32": BlockType(26, 1, 4),
    "I64": BlockType(27, 1, 8),
    "F64": BlockType(28, 1, 8),
    "IQ1_M": BlockType(29, 256, 56),
    "BF16": BlockType(30, 1, 2),
    "TQ1_0": BlockType(34, 256, 54),
    "TQ2_0": BlockType(35, 256, 66),
    "MXFP4": BlockType(39, 32, 17),
    "NVFP4": BlockType(40, 64, 36),
    "Q1_0": BlockType(41, 128, 18),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as its file has it.

    shape is row-major (GGUF's dimensions reversed), so rows lie along its last axis; `nbytes` were
    checked against the file when it was opened.
    """

    name: str
    type: str  # GGUF's name, or the safetensors dtype; the three float names coincide
    shape: tuple[int, ...]
    mapping: FileMapping
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def rows(self) -> U8:
        """uint8 [rows, row_bytes], the file's own memory (a copy only where it is misaligned)."""
        data = self.mapping.view(self.offset, self.nbytes, f"tensor {self.name!r}")
        rows = math.prod(self.shape[:-1])
        return _aligned(data).reshape(rows, self.nbytes // rows if rows else 0)

    def drop(self) -> None:
        self.mapping.drop(self.offset, self.nbytes)


def _aligned(data: U8) -> U8:
    # Old safetensors writers left data at odd offsets; kernels read floats in place.
    return data if data.ctypes.data % 4 == 0 else np.array(data)
