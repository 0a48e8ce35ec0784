"""Streams a tensor's rows into panels, a few megabytes at a time, and gives its pages back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from octavo import _native
from octavo.backends.native.recipe import Storage, pack_plan
from octavo.formats import rtn
from octavo.formats.granularity import PerTensor
from octavo.formats.quantized import AffineRows
from octavo.io.weights import TensorView, WeightSource
from octavo.spec.decoder import Role

_CHUNK_VALUES = 1 << 18  # of a row range: its fp32 form takes 1 MB, and stays in a core's cache
_PANEL = 16


def pack_all(
    source: WeightSource, items: Mapping[Role, Storage], threads: int
) -> dict[Role, _native.Weight]:
    """Every matrix packed, row ranges in parallel (packing runs without the GIL); file pages are
    dropped. Raises FormatError when a value doesn't fit the format asked for."""
    arena = _native.Arena()
    with ThreadPoolExecutor(threads) as pool:
        return {role: _pack(pool, arena, source.tensor(role), i) for role, i in items.items()}


def _pack(
    pool: ThreadPoolExecutor, arena: _native.Arena, view: TensorView, item: Storage
) -> _native.Weight:
    ranges = list(_encoded_ranges(item) if item.method == "encoded" else _ranges(item.shape))
    if item.method == "encoded":
        first = _encoded(view, item, *ranges.pop(0))
        weight = _native.Weight(arena, _completed(item, first))
        _pack_affine(weight, first, item, 0)
        one = partial(_pack_encoded, weight, view, item)
    else:
        weight = _native.Weight(arena, pack_plan(item))
        one = partial(_pack_rows, weight, view, item)
    if len(ranges) == 1:  # handing it to a thread costs more than it saves
        one(*ranges.pop())
    for _ in pool.map(one, *zip(*ranges, strict=True)):
        pass  # raises what a range raised
    view.drop()
    return weight


def _pack_rows(
    weight: _native.Weight, view: TensorView, item: Storage, start: int, stop: int
) -> None:
    if item.method == "floats" and item.format.variant == "fp16":
        values = view.float32(start, stop).astype(np.float16).astype(np.float32)
        weight.pack_floats("F32", values.view(np.uint8), start)
        return
    raw = view.raw(start, stop)
    data = np.ascontiguousarray(raw.data)
    if item.method == "blocks":
        weight.pack_gguf(raw.type, data, start)
    elif item.method == "floats":
        weight.pack_floats(raw.type, data, start)
    else:
        weight.pack_rounded(raw.type, data, start, item.format.bits, item.convention)


def _pack_encoded(
    weight: _native.Weight, view: TensorView, item: Storage, start: int, stop: int
) -> None:
    _pack_affine(weight, _encoded(view, item, start, stop), item, start)


def _pack_affine(weight: _native.Weight, rows: AffineRows, item: Storage, start: int) -> None:
    weight.pack_affine(rows.codes, rows.scales, rows.offsets, item.format.bits, start)


def _encoded(view: TensorView, item: Storage, start: int, stop: int) -> AffineRows:
    if item.format == view.format:
        tensor = view.quantized(start, stop)
    else:
        tensor = rtn.encode(view.float32(start, stop), item.format)
    return tensor.affine()


def _completed(item: Storage, rows: AffineRows) -> _native.PackPlan:
    """The plan, with what only the codes tell: zero, levels, offsets, and their widths."""
    plan = pack_plan(item)
    plan.group, plan.zero = rows.group, rows.zero
    plan.has_offset = rows.offsets is not None
    plan.scale_f32 = item.format.scale != "fp16" or item.format.zero == "int"
    shifted = item.format.zero == "int" and rows.offsets is None
    plan.code = _native.code_for(8 if shifted else item.format.bits)
    if rows.levels is not None:
        levels = np.zeros(16 if item.format.bits <= 4 else 256, np.float32)
        levels[: rows.levels.size] = rows.levels
        if item.format.variant == "iq4nl":
            plan.levels8 = [int(level) for level in levels]
        else:
            plan.levels = levels.tolist()
    return plan


def _encoded_ranges(item: Storage) -> Iterator[tuple[int, int]]:
    """Whole where one number is shared by all rows, or a zero that only all codes tell."""
    format = item.format
    whole = isinstance(format.granularity, PerTensor) or format.scale == "e4m3"
    whole = whole or (format.zero == "int" and format.scale != "fp16")
    return iter([(0, item.shape[0])]) if whole else _ranges(item.shape)


def _ranges(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    rows = max(_PANEL, _CHUNK_VALUES // shape[1] // _PANEL * _PANEL)
    for start in range(0, shape[0], rows):
        yield start, min(shape[0], start + rows)
