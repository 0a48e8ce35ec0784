"""What a compression will take: memory before it begins, time once two blocks are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from octavo.compress.base import Needs
from octavo.compress.plan import FIRST, Plan
from octavo.core.allocator import return_freed_memory
from octavo.core.errors import ResourceError
from octavo.core.hardware import forget_peak, probe, process_memory
from octavo.spec.decoder import DecoderSpec, LayerSpec, MoeMlp, Role
from octavo.spec.graph import role_shape, roles, shared_inputs

_FP32 = 4
_REVISED_AFTER = 2  # blocks
_TEMPORARY = 48 << 20  # of rounding, which goes through a weight in slices
Progress = Callable[[str, int, int], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes of the process at their peak while it compresses (reading the text before and measuring
    after are not counted), and seconds of compressing: predicted, and as they came. None where
    nothing could be said. `earlier_peak` came before, mostly from tokenizing the text."""

    predicted_peak: int
    earlier_peak: int
    peak: int | None = None
    predicted_seconds: float | None = None
    seconds: float | None = None


def predicted_peak(plan: Plan, length: int, sequences: int = 1) -> int:
    """Bytes that compressing adds to the process, with so many `sequences` of `length` tokens."""
    layers = range(len(plan.spec.layers))
    blocks = max((_block(plan, layer, length, sequences) for layer in layers), default=0)
    return max(blocks, _outside(plan, length), _gradients(plan, length)) + _TEMPORARY


def check_memory(need: int) -> None:
    """Raise ResourceError when more is needed than there is."""
    available = probe().memory.available
    if need > available:
        raise ResourceError(
            f"compressing needs {need / 1e9:.2f} GB, and {available / 1e9:.2f} GB are available; "
            "use shorter sequences (--length), or a method without a Hessian (rtn, hqq)"
        )


class Watch:
    """Times stages as they are finished, and says when all will be: a Progress around another.

    found    stages that an earlier run has finished: they take no time, and tell nothing of others
    earlier  seconds that stages took in earlier runs; note is told those of this one
    """

    def __init__(
        self,
        plan: Plan,
        length: int,
        inner: Progress | None = None,
        clock: Clock = time.monotonic,
        found: frozenset[str] = frozenset(),
        earlier: Mapping[str, float] = MappingProxyType({}),
        note: Callable[[str, float], None] = lambda stage, seconds: None,
        sequences: int = 1,
    ) -> None:
        self._plan, self._found, self._earlier, self._note = plan, found, earlier, note
        self._inner, self._clock = inner, clock
        return_freed_memory()  # what reading the text left is no part of what is needed
        self._earlier_peak = process_memory().peak
        self._above = 0 if forget_peak() else self._earlier_peak
        self._before = process_memory().resident
        self._need = predicted_peak(plan, length, sequences)
        self._begin = self._last = clock()
        self._stages: dict[str, float] = {}
        self._predicted: float | None = None
        self._seconds: float | None = None

    @property
    def need(self) -> int:
        """Bytes that compressing will add."""
        return self._need

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        self._stages[stage], self._last = now - self._last, now
        self._seconds = now - self._begin
        if stage not in self._found:
            self._note(stage, self._stages[stage])
        new = {name: taken for name, taken in self._stages.items() if name not in self._found}
        blocks = [taken for name, taken in new.items() if name.isdigit()]
        if stage in new and stage.isdigit() and len(blocks) == _REVISED_AFTER:
            left = total - done - 1  # the last stage is no block
            later = sum(blocks) / len(blocks)
            self._predicted = self._seconds + left * later + self._last_stage(later, new)
        if self._inner:
            self._inner(self._words(stage), done, total)

    def _last_stage(self, block: float, new: Mapping[str, float]) -> float:
        """Seconds of the last stage: a head of its own takes what the embedding took; an embedding
        that waits for its data as much as a block of that size; otherwise it copies a norm."""
        spec = self._plan.spec
        if not spec.tied_head:
            return new.get(FIRST, self._earlier.get(FIRST, 0.0))
        if self._plan.encoded_first():
            return 0.0
        values = sum(prod(role_shape(spec, role)) for role in roles(spec) if role.layer == 0)
        return block * prod(role_shape(spec, Role("embed"))) / values

    def _words(self, stage: str) -> str:
        if self._predicted is None or self._seconds is None:
            return stage
        return f"{stage}, {max(0.0, self._predicted - self._seconds):.0f} s left"

    def forecast(self) -> Forecast:
        """Of what was watched; call it when the last stage is done."""
        peak = process_memory().peak
        came = peak if peak > self._above else None  # else it may be that of reading the text
        need = self._before + self._need
        return Forecast(need, self._earlier_peak, came, self._predicted, self._seconds)


def _gradients(plan: Plan, length: int) -> int:
    """Weights, gradients and their squares, all at once, and what a text leaves for the way back:
    its hidden states and rows of the MLP in every layer, logits and their gradients."""
    if not plan.fisher:
        return 0
    spec = plan.spec
    weights = sum(prod(role_shape(spec, role)) for role in roles(spec))
    wanted = sum(prod(role_shape(spec, role)) for role in plan.fisher)
    kept = sum(12 * spec.hidden + 4 * layer.mlp.intermediate for layer in spec.layers)
    return _FP32 * (weights + 2 * wanted + length * (kept + 3 * spec.vocab))


def _outside(plan: Plan, length: int) -> int:
    """The embedding or head: read, its codes made in parts and put together, decoded."""
    spec, most = plan.spec, 0
    for role in roles(spec):
        if role.layer is None and len(role_shape(spec, role)) == 2:
            values = _FP32 * prod(role_shape(spec, role))
            step = plan.steps.get(role)
            copies = 2.25 if step is None else 2.25 + 2 * step.target.bits / 32
            extra = _encoding(plan, role) if plan.needs(role) else 0
            most = max(most, int(copies * values) + extra)
    return most


def _block(plan: Plan, layer: int, length: int, sequences: int) -> int:
    spec = plan.spec
    mine = [role for role in roles(spec) if role.layer == layer]
    weights = _FP32 * sum(prod(role_shape(spec, role)) for role in mine)
    statistics = sum(_statistics(plan, group, length) for group in shared_inputs(spec, layer))
    encoding = max((_encoding(plan, role) for role in mine), default=0)
    running = _sequence(spec, spec.layers[layer], length) if plan.gathers else 0
    copies = 3 if plan.transforms else 2
    together = _together(plan, layer, length, sequences)
    return copies * weights + 2 * statistics + max(encoding, running, together)


def _together(plan: Plan, layer: int, length: int, sequences: int) -> int:
    """A block whose rounding is learned: of every weight what is learned with its gradient and
    three copies, its rounded value and what the way back keeps of that; what the way back keeps of
    one sequence; and the block's outputs for all."""
    spec, mine = plan.spec, [role for role in plan.together if role.layer == layer]
    if not mine:
        return 0
    learned = 12 * sum(prod(role_shape(spec, role)) for role in mine)
    rows = 12 * spec.hidden + 6 * _active(spec.layers[layer])
    kept = length * rows + 3 * spec.layers[layer].attention.heads * length * length
    return _FP32 * (learned + kept + sequences * length * spec.hidden)


def _statistics(plan: Plan, group: tuple[Role, ...], length: int) -> int:
    needs, width = Needs.NOTHING, role_shape(plan.spec, group[0])[-1]
    for role in group:
        needs |= plan.needs(role)
    hessian = _FP32 * width * width if Needs.HESSIAN in needs else 0
    samples = _FP32 * max(length, 4096) * width if Needs.SAMPLES in needs else 0
    return hessian + samples


def _encoding(plan: Plan, role: Role) -> int:
    """One matrix being encoded: working copies, and factors of its Hessian."""
    if role not in plan.steps:
        return 0
    shape = role_shape(plan.spec, role)
    factors = 4 * shape[-1] * shape[-1] if Needs.HESSIAN in plan.needs(role) else 0
    return _FP32 * (4 * prod(shape) + factors)


def _sequence(spec: DecoderSpec, layer: LayerSpec, length: int) -> int:
    """One sequence on its way through a block: scores of all heads, and rows of the MLP."""
    attention = layer.attention
    scores = 2 * _FP32 * attention.heads * length * length + 10 * length * length
    rows = _FP32 * length * (4 * spec.hidden + 3 * attention.heads * attention.head_dim)
    return rows + max(scores, 4 * _FP32 * length * _active(layer))


def _active(layer: LayerSpec) -> int:
    """Channels of the MLP that a token goes through."""
    mlp = layer.mlp
    return mlp.intermediate * (mlp.top_k if isinstance(mlp, MoeMlp) else 1)
