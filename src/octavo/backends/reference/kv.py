"""Where the reference keeps keys and values: dense for one sequence, paged for the executor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from octavo.backends.base import KvFormat, KvLayout, StepBatch
from octavo.backends.reference.attention import attend, visible
from octavo.backends.reference.integer import attend_int8
from octavo.backends.reference.kivi import attend_kivi, whole_groups
from octavo.backends.reference.rounding import round_kv
from octavo.core.errors import InternalError
from octavo.formats.kivi import KIVI_BITS
from octavo.spec.decoder import AttentionSpec


class KvStore(Protocol):
    """Takes the keys and values of a step's rows and answers their queries."""

    def attend(
        self, layer: int, spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """q [rows, heads, head_dim], k and v [rows, kv_heads, head_dim]; q's shape comes back.

        Keys are rotated already. What a query reads of this step's own rows is what was stored.
        """


class DenseKv:
    """One sequence whose keys and values grow; gradients flow through them."""

    def __init__(self, layers: int, format: KvFormat) -> None:
        self._format = format
        self._kv: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers

    def __len__(self) -> int:
        """Tokens stored."""
        first = self._kv[0]
        return 0 if first is None else first[0].shape[0]

    def attend(
        self, layer: int, spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        k, v = round_kv(k, v, stored_as(self._format))
        before = self._kv[layer]
        if before is not None:
            k, v = torch.cat([before[0], k]), torch.cat([before[1], v])
        self._kv[layer] = (k, v)
        at = torch.arange(k.shape[0], device=k.device)[-q.shape[0] :]
        if self._format in KIVI_BITS:
            k, v = whole_groups(k), whole_groups(v)
        return answered(self._format, spec, (q, at), (k, v))


def stored_as(format: KvFormat) -> KvFormat:
    """What keys and values are rounded to when they are written: KIVI's are rounded again when
    they are read, by how old they are then; those of integer products are, for their codes."""
    if format == "int8_dot":
        return "fp32"
    return "bf16" if format in KIVI_BITS else format


def answered(
    format: KvFormat,
    spec: AttentionSpec,
    queries: tuple[torch.Tensor, torch.Tensor],
    kv: tuple[torch.Tensor, torch.Tensor],
    at: torch.Tensor | None = None,
) -> torch.Tensor:
    """What queries (q, positions) read of keys and values as stored, at positions 0, 1, 2 ...
    unless `at` has them; of KIVI in whole groups."""
    q, q_at = queries
    k_at = torch.arange(len(kv[0]), device=q.device) if at is None else at
    if format in KIVI_BITS:
        return attend_kivi(spec, KIVI_BITS[format], queries, kv, k_at)
    if format == "int8_dot":
        return attend_int8(spec, queries, kv, k_at).to(q.dtype)
    return attend(spec, q, *kv, q_at, k_at)


class WholeKv:
    """For whole sequences that nothing follows: keeps nothing, and takes torch's fused attention,
    which is several times faster than the formula and rounds differently. Keys and values are
    rounded as a cache of `format` does."""

    def __init__(self, format: KvFormat = "fp32") -> None:
        self._format = format

    def attend(
        self, layer: int, spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        k, v = round_kv(k, v, self._format)
        at = torch.arange(len(q), device=q.device)
        if spec.softcap is not None:
            return attend(spec, q, k, v, at, at)
        masked = spec.window is not None and spec.window < len(q)
        shared = spec.heads // spec.kv_heads
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        mixed = scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=visible(spec.window, at, at) if masked else None,
            is_causal=not masked,
            scale=spec.scale,
        )
        return mixed[0].transpose(0, 1)


class PagedKv:
    """Blocks per layer, [blocks, block_size, kv_heads, head_dim] for K and for V.

    `bind` names the batch whose tables the following `attend` calls go through.
    """

    def __init__(
        self, layout: KvLayout, blocks: tuple[int, ...], dtype: torch.dtype, device: str
    ) -> None:
        self._layout = layout
        self._batch: StepBatch
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        stored = halves.get(stored_as(layout.format), dtype)
        self._group_of: dict[int, int] = {}
        self._kv: dict[int, torch.Tensor] = {}
        for index, group in enumerate(layout.groups):
            shape = (2, blocks[index], layout.block_size, group.kv_heads, group.head_dim)
            for layer in group.layers:
                self._group_of[layer] = index
                self._kv[layer] = torch.zeros(shape, dtype=stored, device=device)

    def bind(self, batch: StepBatch) -> None:
        self._batch = batch

    def copy(self, group: int, source: int, target: int) -> None:
        """Copies one block of every layer of the group."""
        for layer in self._layout.groups[group].layers:
            self._kv[layer][:, target] = self._kv[layer][:, source]

    def read(self, group: int, blocks: Sequence[int]) -> bytes:
        """What blocks of a group hold: layer after layer, K and then V of all of them."""
        layers = self._layout.groups[group].layers
        held = torch.stack([self._kv[layer][:, list(blocks)] for layer in layers])
        return held.cpu().contiguous().view(torch.uint8).numpy().tobytes()

    def write(self, group: int, blocks: Sequence[int], data: bytes) -> None:
        """Puts back what `read` gave. Raises InternalError for another size."""
        layers = self._layout.groups[group].layers
        first = self._kv[layers[0]]
        shape = (len(layers), 2, len(blocks), *first.shape[2:])
        if len(data) != math.prod(shape) * first.element_size():
            raise InternalError(f"{len(data)} bytes are not those of {len(blocks)} blocks")
        held = torch.frombuffer(bytearray(data), dtype=first.dtype).reshape(shape)
        for index, layer in enumerate(layers):
            self._kv[layer][:, list(blocks)] = held[index].to(first.device)

    def attend(
        self, layer: int, spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        starts = self._batch.row_start
        answers = []
        for sequence in np.flatnonzero(np.diff(starts[: self._batch.n_seqs + 1])).tolist():
            rows = slice(int(starts[sequence]), int(starts[sequence + 1]))
            at = torch.from_numpy(self._batch.position[rows].astype("int64")).to(q.device)
            table = self._batch.block_table[self._group_of[layer], sequence]
            blocks = torch.from_numpy(table.astype("int64")).to(q.device)
            self._write(layer, blocks, at, k[rows], v[rows])
            answers.append(self._read(layer, spec, blocks, q[rows], at))
        return torch.cat(answers)

    def _write(
        self, layer: int, blocks: torch.Tensor, at: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        size, kv = self._layout.block_size, self._kv[layer]
        k, v = round_kv(k, v, stored_as(self._layout.format))
        kv[:, blocks[at // size], at % size] = torch.stack([k, v]).to(kv.dtype)

    def _read(
        self,
        layer: int,
        spec: AttentionSpec,
        blocks: torch.Tensor,
        q: torch.Tensor,
        at: torch.Tensor,
    ) -> torch.Tensor:
        """Keys of absent blocks are left out: only a window's blocks may be absent. A block holds
        whole groups of KIVI (`executor.resolve`)."""
        size = self._layout.block_size
        used = blocks[: int(at.max()) // size + 1]
        present = torch.nonzero(used >= 0)[:, 0]
        offsets = torch.arange(size, device=q.device)
        positions = (present[:, None] * size + offsets).flatten()
        kv = self._kv[layer][:, used[present]].flatten(1, 2).to(q.dtype)
        return answered(self._layout.format, spec, (q, at), (kv[0], kv[1]), positions)
