"""`FileSource`: the WeightSource of both kinds of files. A family says where a role's rows lie.

A file may store a role's rows inside a fused or stacked tensor, or in another order. Blocks lie
along the inputs, so rows can be picked and moved without decoding them.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.core.errors import InternalError, ModelFileError
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.gguf_blocks import dequantize, format_of, quantized
from octavo.io.mapping import U8
from octavo.io.stored import BLOCK_TYPES, StoredTensor
from octavo.io.weights import RawBlocks
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.family import TensorRef
from octavo.spec.graph import role_shape, roles

Locate = Callable[[DecoderSpec, Role], TensorRef]

# Tensors that repeat what the spec says already: rope tables, and the head of a tied model.
HARMLESS = re.compile(
    r"rope_freqs\.weight|rope_factors_(short|long)\.weight|(.*\.)?rotary_emb\.inv_freq"
    r"|lm_head\.weight"
)


@dataclass(frozen=True, slots=True)
class RowsView:
    """A TensorView: `shape[0]` rows of a stored tensor from row `first` on.

    A vector counts as rows of one element. `heads` says how many heads have their rows interleaved
    for pairwise rope (0: none): row 2j + p of a head is row p * head_dim / 2 + j in our order.
    """

    stored: StoredTensor
    shape: tuple[int, ...]
    first: int = 0
    heads: int = 0
    add: float = 0.0

    @property
    def format(self) -> NumberFormat:
        return format_of(self.stored.type)

    @property
    def nbytes(self) -> int:
        """Bytes of these rows in the file."""
        return self.shape[0] * self._row_bytes()

    def raw(self, start: int, stop: int) -> RawBlocks:
        if self.add:
            raise InternalError(f"{self.stored.name} has a constant to add: read it as float32")
        return RawBlocks(self.stored.type, self._rows(start, stop))

    def quantized(self, start: int, stop: int) -> QuantizedTensor:
        return quantized(*self.raw(start, stop))

    def float32(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        data = self._rows(start, self.shape[0] if stop is None else stop)
        values = dequantize(self.stored.type, data)
        if self.add:
            values += np.float32(self.add)
        return values.reshape(-1, *self.shape[1:])

    def drop(self) -> None:
        start = self.stored.offset + self.first * self._row_bytes()
        self.stored.mapping.drop(start, self.nbytes)

    def _rows(self, start: int, stop: int) -> U8:
        if not 0 <= start <= stop <= self.shape[0]:
            raise InternalError(f"rows {start}..{stop} of {self.stored.name} {self.shape}")
        rows = self.stored.rows().reshape(-1, self._row_bytes())
        mine = rows[self.first : self.first + self.shape[0]]
        return mine[self._order(start, stop)] if self.heads else mine[start:stop]

    def _row_bytes(self) -> int:
        width = 1 if len(self.shape) == 1 else self.shape[1]
        return self.stored.nbytes * width // self.stored.elements

    def _order(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Stored rows of our rows [start, stop)."""
        head_dim = self.shape[0] // self.heads
        head, row = np.divmod(np.arange(start, stop), head_dim)
        side, pair = np.divmod(row, head_dim // 2)
        order: npt.NDArray[np.int64] = head * head_dim + 2 * pair + side
        return order


class FileSource:
    """All tensors of one model file or directory by role."""

    def __init__(
        self,
        spec: DecoderSpec,
        tensors: Mapping[str, StoredTensor],
        locate: Locate,
        origin: str,
    ) -> None:
        self._spec = spec
        self._tensors = tensors
        self._locate = locate
        self._origin = origin

    def tensor(self, role: Role) -> RowsView:
        ref = self._locate(self._spec, role)
        stored = self._tensors.get(ref.name)
        if stored is None:
            raise ModelFileError(self._missing(ref.name, role))
        return self._view(stored, ref, role)

    def has(self, role: Role) -> bool:
        return self._locate(self._spec, role).name in self._tensors

    def describe(self) -> str:
        sizes: Counter[str] = Counter()
        for tensor in self._tensors.values():
            sizes[tensor.type] += tensor.nbytes
        total = max(1, sizes.total())
        shares = [f"{name} {size / total:.0%}" for name, size in sizes.most_common(3)]
        return f"{self._origin} ({', '.join(shares)} of {total / 1e6:.1f} MB)"

    def check(self) -> None:
        """Every role's tensor is there in the spec's shape, and no tensor is left unread.

        An unread tensor means that the file computes something that the spec doesn't know.
        """
        used = {self.tensor(role).stored.name for role in roles(self._spec)}
        for name in self._tensors:
            if name not in used and not HARMLESS.fullmatch(name):
                raise ModelFileError(
                    f"{self._origin}: tensor {name!r} is not part of a {self._spec.family} model "
                    "as its config describes it. Check that config and weights belong together."
                )

    def _view(self, stored: StoredTensor, ref: TensorRef, role: Role) -> RowsView:
        shape = role_shape(self._spec, role)
        first, stop = ref.rows or (0, shape[0])
        experts = stored.shape[0] if ref.index is not None else 1
        matrix = stored.shape if ref.index is None else stored.shape[1:]
        # Only a part of a fused tensor may be smaller than what is stored.
        fits = matrix == shape if ref.rows is None else _has_rows(matrix, stop, shape)
        index = ref.index or 0
        if not fits or stop - first != shape[0] or index >= experts or _split(stored, shape):
            raise ModelFileError(
                f"{self._origin}: tensor {stored.name!r} ({role}) is {stored.type} "
                f"{list(stored.shape)}, which can't hold the {list(shape)} that the config calls "
                "for. Check that config and weights belong together."
            )
        return RowsView(stored, shape, index * matrix[0] + first, ref.unpermute, ref.add)

    def _missing(self, name: str, role: Role) -> str:
        near = difflib.get_close_matches(name, self._tensors, n=1)
        hint = f" The nearest is {near[0]!r}." if near else ""
        return (
            f"{self._origin}: no tensor {name!r} ({role}).{hint} The file is incomplete, or its "
            "config describes another model: fetch it again."
        )


def _has_rows(matrix: tuple[int, ...], stop: int, shape: tuple[int, ...]) -> bool:
    return len(matrix) == len(shape) and matrix[0] >= stop and matrix[1:] == shape[1:]


def _split(stored: StoredTensor, shape: tuple[int, ...]) -> bool:
    """A vector in blocks: its elements can't be picked one by one, and no converter writes it."""
    return len(shape) == 1 and stored.type in BLOCK_TYPES and BLOCK_TYPES[stored.type].elements > 1
