"""Streams a tensor's rows into panels, a few megabytes at a time, and gives its pages back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from octavo import _native
from octavo.backends.native.recipe import TWO_LEVELS, Storage, pack_plan, sub_bias
from octavo.formats import rtn
from octavo.formats.activations import LEVELS8, takes_a8
from octavo.formats.codebooks import level_steps
from octavo.formats.granularity import PerTensor
from octavo.formats.quantized import F32, I16, U8, AffineRows
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
    top = item.format.super_scale
    bias = sub_bias(top) if top and rows.subs is not None else 0
    weight.pack_affine(
        rows.codes,
        rows.scales,
        start,
        rows.offsets,
        rows.zeros,
        _unsigned(rows.subs, bias),
        _unsigned(rows.sub_offsets, 0),
    )


def _unsigned(subs: I16 | None, bias: int) -> U8 | None:
    return None if subs is None else (subs + bias).astype(np.uint8)


def _encoded(view: TensorView, item: Storage, start: int, stop: int) -> AffineRows:
    if item.format == view.format:
        tensor = view.quantized(start, stop)
    else:
        tensor = rtn.encode(view.float32(start, stop), item.format)
    rows = tensor.affine()
    return rows if pack_plan(item).scaling in TWO_LEVELS else rows.one_level()


def _completed(item: Storage, rows: AffineRows) -> _native.PackPlan:
    """The plan, with what only the codes tell: zero, levels, and whether scales have two levels."""
    plan = pack_plan(item)
    plan.group, plan.zero = rows.group, rows.zero
    if plan.scaling in TWO_LEVELS and rows.subs is None:  # a tensor scale made one level of them
        plan.scaling = _native.Scaling.F32
    if rows.levels is not None:
        _set_levels(plan, item, rows.levels)
    return plan


def _set_levels(plan: _native.PackPlan, item: Storage, stored: F32) -> None:
    levels = np.zeros(16 if stored.size <= 16 else 256, np.float32)
    levels[: stored.size] = stored
    if item.format.variant in LEVELS8:
        plan.levels8 = [int(level) for level in levels]
        return
    plan.levels = levels.tolist()
    if takes_a8(item.format):
        integers, step = level_steps(levels)
        plan.set_levels16(integers.tolist(), step)


def _encoded_ranges(item: Storage) -> Iterator[tuple[int, int]]:
    """Whole where one number is shared by all rows."""
    format = item.format
    whole = isinstance(format.granularity, PerTensor) or format.scale == "e4m3"
    return iter([(0, item.shape[0])]) if whole else _ranges(item.shape)


def _ranges(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    rows = max(_PANEL, _CHUNK_VALUES // shape[1] // _PANEL * _PANEL)
    for start in range(0, shape[0], rows):
        yield start, min(shape[0], start + rows)
