"""`NativeBackend` and `load`: from a spec and a source to an executor that is ready to step."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import get_args

import numpy as np

from octavo import _native
from octavo.backends.base import (
    REFERENCE_ONLY,
    ActivationFormat,
    KvFormat,
    RuntimeConfig,
    StepBatch,
    Support,
)
from octavo.backends.native import kv_check, memory, outlier_check, receipt, threads
from octavo.backends.native.describe import Packed, describe_model, describe_runtime
from octavo.backends.native.executor import NativeExecutor
from octavo.backends.native.packing import pack_all
from octavo.backends.native.pattern_gains import machine_name, recorded
from octavo.backends.native.recipe import (
    Storage,
    pack_plan,
    packed_size,
    storage,
)
from octavo.backends.native.zero_notes import zero_notes
from octavo.backends.native.zeros import check_strict as check_zeros
from octavo.backends.served import VARIANT, block_size_for, check_variant, kv_reasons, settled
from octavo.core.errors import ConfigError, FormatError, ResourceError, UnsupportedError
from octavo.core.hardware import Machine, probe
from octavo.formats.kivi import KIVI_BITS, RECENT, WINDOW
from octavo.formats.number_format import NumberFormat
from octavo.io.served import served_by
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, LayerSpec, MoeMlp, Role
from octavo.spec.graph import role_shape, roles

_MAX_GROUP_HEADS = 64  # native/exec/plan.h
_MAX_KV_DIM = 512  # native/core/types.h
_RANGES = (
    ("threads", 0, 256), ("max_tokens", 1, 1 << 16), ("max_seqs", 1, 1 << 12),
    ("context", 0, 1 << 24), ("kv_tokens", 0, 1 << 30),
)  # fmt: skip
_ADVISED = ("bf16", "int8_g32", "int6_g32", "int5_g32", "int4_g32", "int3_g32", "int2_g32")
_PARTS = ("embed", "embed_up", "head_down", "head", "q", "k", "v", "o", "gate", "up", "down")


class NativeBackend:
    """Our own kernels, on the processor."""

    name = "native"

    def supports(self, spec: DecoderSpec, config: RuntimeConfig) -> Support:
        reasons = (*_spec_reasons(spec), *_config_reasons(config), *_kv_reasons(spec, config))
        return Support(not reasons, reasons)


def load(spec: DecoderSpec, source: WeightSource, config: RuntimeConfig) -> NativeExecutor:
    """Pack all weights and resolve the plan.

    Raises UnsupportedError (spec, ISA, activations, strict), FormatError (a shape can't take the
    format), ResourceError (memory), ModelFileError (a missing or damaged tensor), ConfigError (an
    option out of range).
    """
    config, notes = settled(config, source)
    support = NativeBackend().supports(spec, config)
    if not support.ok:
        raise UnsupportedError("the native backend can't run this: " + "; ".join(support.reasons))
    _check_keep(spec, config)
    machine = probe()
    config = replace(config, isa=resolve_isa(config.isa), block_size=block_size_for(config))
    items = {
        role: storage(role, source.tensor(role), config, spec.tied_head, served_by(source).maxima)
        for role in roles(spec)
        if len(role_shape(spec, role)) == 2
    }
    config, more = _fit(spec, config, items, machine)
    if config.strict:
        check_zeros(item.zeros for item in items.values())
    pruned = zero_notes(items.values(), recorded(machine_name(machine, config.isa)))
    notes = (*notes, *more, *pruned, *_variant_notes(config, items.values()))
    weights = _pack_all(source, items, min(config.threads or machine.threads, machine.threads))
    return _start(spec, source, config, items, weights, (*notes, *_thread_note(config, machine)))


def _variant_notes(config: RuntimeConfig, items: Iterable[Storage]) -> tuple[str, ...]:
    if not any(item.kind == "a8_tensor" for item in items):
        return ()
    check_variant(config)
    return (VARIANT,)


def usable_now() -> int:
    """Threads that this process may run at once, by affinity and control groups."""
    return probe().threads


def resolve_isa(asked: str) -> str:
    """The kernel table's name for `asked`, for OCTAVO_ISA when that is blank, else the best.

    Raises UnsupportedError when this CPU or this build lacks it, or there is none of that name.
    """
    name = asked or os.environ.get("OCTAVO_ISA", "")
    try:
        return _native.resolve_isa(name)
    except ValueError as error:
        setting = f"isa {asked!r}" if asked else f"OCTAVO_ISA={name}"
        raise UnsupportedError(f"{setting}: {error}; leave it out for the best one") from error


def _fit(
    spec: DecoderSpec, config: RuntimeConfig, items: Mapping[Role, Storage], machine: Machine
) -> tuple[RuntimeConfig, tuple[str, ...]]:
    """The config with context and cache resolved, within the memory there is."""
    packed = sum(pack_plan(item).packed_bytes for item in items.values())
    available = machine.memory.available
    granted = min(config.memory or available, available)
    layout = memory.kv_layout(spec, config)
    fixed = memory.recent_bytes(layout, config)
    budget = memory.Budget(packed, granted, _smaller(items, packed), fixed)
    per_token = memory.cost_per_token(layout)
    context, note = memory.choose_context(spec, config, per_token, budget)
    config, more = memory.choose_cache(replace(config, context=context), per_token, budget)
    return config, tuple(filter(None, (note, more)))


def _smaller(items: Mapping[Role, Storage], packed: int) -> tuple[tuple[str, int], ...]:
    """Bytes of all matrices in formats that take fewer."""
    found = []
    for name in _ADVISED:
        format = NumberFormat.parse(name)
        try:
            size = sum(packed_size(format, item.shape) for item in items.values())
        except FormatError:
            continue
        if size < packed:
            found.append((name, size))
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def _pack_all(
    source: WeightSource, items: Mapping[Role, Storage], threads: int
) -> dict[Role, _native.Weight]:
    try:
        return pack_all(source, items, threads)
    except MemoryError as error:
        raise ResourceError("out of memory while packing weights; use a smaller format") from error


def _start(
    spec: DecoderSpec,
    source: WeightSource,
    config: RuntimeConfig,
    items: Mapping[Role, Storage],
    weights: Mapping[Role, _native.Weight],
    notes: tuple[str, ...],
) -> NativeExecutor:
    layout = memory.kv_layout(spec, config)
    blocks = memory.kv_blocks(layout, config)
    packed = {
        role: (weight, item.act, item.scale, item.peak)
        for role, weight in weights.items()
        for item in (items[role],)
    }
    model = describe_model(spec, source, packed, layout, config.context)
    usable = usable_now()

    def build(count: int) -> _native.Executor:
        counted = replace(config, threads=count)
        return _native.Executor(model, describe_runtime(counted, blocks, usable))

    try:
        choice = threads.choose(build, layout, config, usable)
    except ValueError as error:
        raise UnsupportedError(f"the native plan refuses this model: {error}") from error
    except MemoryError as error:
        raise ResourceError(
            "no address space for the cache and the step's buffers; use a shorter context"
        ) from error
    config = replace(config, threads=choice.threads)
    measured = (
        *_kv_notes(spec, source, config, packed),
        *outlier_check.notes(spec, source, config, items, packed),
    )
    native, notes = choice.native, (*notes, *choice.notes(), *measured)
    if config.strict:
        receipt.check_strict(native.kernels(), native.isa)
    config = replace(config, activations=_main_activations(items))
    proof = receipt.build(spec, config, items, weights, native, notes)
    return NativeExecutor(native, spec, layout, config, blocks, proof)


def _kv_notes(
    spec: DecoderSpec, source: WeightSource, config: RuntimeConfig, packed: Packed
) -> tuple[str, ...]:
    """What integer keys and values cost, where the context leaves room to measure."""
    if config.kv_format in KIVI_BITS:
        return (_recent_note(spec, config),)
    if config.kv_format not in kv_check.MEASURED or config.context < kv_check.TOKENS:
        return ()

    def build(kv_format: KvFormat) -> tuple[_native.Executor, StepBatch]:
        n = kv_check.TOKENS
        small = replace(
            config, kv_format=kv_format, context=n, kv_tokens=n, max_tokens=n, max_seqs=1
        )
        layout = memory.kv_layout(spec, small)
        blocks = memory.kv_blocks(layout, small)
        model = describe_model(spec, source, packed, layout, n)
        batch = StepBatch(layout, n, 1, blocks[0])
        batch.block_table[:, 0, :] = np.arange(blocks[0])
        return _native.Executor(model, describe_runtime(small, blocks, usable_now())), batch

    return (kv_check.measure(build, config.kv_format, spec.vocab).note,)


def _recent_note(spec: DecoderSpec, config: RuntimeConfig) -> str:
    layout = memory.kv_layout(spec, config)
    size = memory.recent_bytes(layout, config)
    return (
        f"KV {config.kv_format}: {memory.kv_bytes_per_token(layout)} bytes a token, and up to "
        f"{size / 1e6:.1f} MB for recent ones in bf16, {WINDOW} to {RECENT} of each sequence; what "
        "it costs isn't measured at load: it shows behind them only"
    )


def _main_activations(items: Mapping[Role, Storage]) -> ActivationFormat:
    """What most matrices run with; the receipt tells them apart."""
    kinds = [item.kind for item in items.values()]
    return max(sorted(set(kinds)), key=kinds.count)


def _spec_reasons(spec: DecoderSpec) -> tuple[str, ...]:
    found: dict[str, list[int]] = {}
    for index, layer in enumerate(spec.layers):
        for reason in _layer_reasons(layer):
            found.setdefault(reason, []).append(index)
    return tuple(f"layer {layers[0]}: {reason}" for reason, layers in found.items())


def _layer_reasons(layer: LayerSpec) -> Iterator[str]:
    attention = layer.attention
    if isinstance(layer.mlp, MoeMlp):
        yield "a mixture of experts is not planned natively yet; the reference backend runs it"
    if attention.head_dim % 16:
        yield f"head_dim {attention.head_dim} is not a multiple of 16"
    if attention.heads // attention.kv_heads > _MAX_GROUP_HEADS:
        yield f"more than {_MAX_GROUP_HEADS} query heads share a key/value head"


def _kv_reasons(spec: DecoderSpec, config: RuntimeConfig) -> Iterator[str]:
    dims = {layer.attention.head_dim for layer in spec.layers}
    yield from kv_reasons(spec, config.kv_format)
    limited = ("int8", "int4", *KIVI_BITS)
    if config.kv_format in limited and max(dims) > _MAX_KV_DIM:
        yield f"kv_format {config.kv_format} takes a head_dim up to {_MAX_KV_DIM}; use bf16"


def _config_reasons(config: RuntimeConfig) -> Iterator[str]:
    for name, words in (("kv_format", KvFormat), ("activations", ActivationFormat)):
        if getattr(config, name) not in get_args(words):
            yield f"{name} {getattr(config, name)!r} is none of {', '.join(get_args(words))}"
    asked = (config.kv_format, config.activations, *(name for _, name in config.keep_activations))
    for name in asked:
        if name in REFERENCE_ONLY:
            yield f"no native kernel has {name}; the reference backend does"
    if config.block_size % 16 or not 16 <= config.block_size <= 256:
        yield f"block_size {config.block_size} is not a multiple of 16 up to 256"
    if not 0 <= config.kv_share <= 1:
        yield f"kv_share {config.kv_share} is not between 0 and 1"
    if not config.wide_ratio > 0:
        yield f"wide_ratio {config.wide_ratio} is not above 0"
    for name, low, high in _RANGES:
        value = getattr(config, name)
        if not low <= value <= high:
            yield f"{name} {value} is not between {low} and {high}"


def _check_keep(spec: DecoderSpec, config: RuntimeConfig) -> None:
    """Formats must parse, and every key must name something that this model has."""
    for name in (config.format, *(format for _, format in config.keep)):
        if name != "source":
            NumberFormat.parse(name)
    has = {role.part for role in roles(spec)}
    parts = (p for p in _PARTS if p in has or p not in ("embed_up", "head_down"))
    known = {*parts, *(f"layers.{r.layer}.{r.part}" for r in roles(spec) if r.part in _PARTS)}
    for part, _ in config.keep:
        if part not in known:
            near = difflib.get_close_matches(part, sorted(known), 1, 0.0)[0]
            raise ConfigError(
                f"keep: {part!r} names no matrix of this model; did you mean {near!r}? "
                "(a part such as down, or layers.3.down)"
            )


def _thread_note(config: RuntimeConfig, machine: Machine) -> tuple[str, ...]:
    if config.threads <= machine.threads:
        return ()
    return (f"{config.threads} threads on {machine.threads} usable processors: they park to wait",)
