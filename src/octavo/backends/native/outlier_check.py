"""What LLM.int8() takes in time on this machine: one layer against itself in bf16, at load.

A row with inputs beyond the threshold goes through the weights a second time, as floats. So both
are timed: the layer's norms are scaled such that no input comes near the threshold, or that every
row has some beyond it. What is timed is the layer's step, attention over a few tokens included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from octavo import _native
from octavo.backends.base import RuntimeConfig, StepBatch
from octavo.backends.native import memory
from octavo.backends.native.describe import Packed, describe_model, describe_runtime
from octavo.backends.native.executor import Results
from octavo.backends.native.packing import pack_all
from octavo.backends.native.recipe import Storage, storage
from octavo.formats.activations import OUTLIER
from octavo.io.memory_views import FloatView
from octavo.io.weights import TensorView, WeightSource
from octavo.spec.decoder import DecoderSpec, Role

ROWS = 16
QUIET, LOUD = 2.0**-10, 2.0**10  # factors of the norms
STEPS = 8  # of each, in turns; the shortest counts, since a neighbour only ever makes one longer
Build = Callable[[bool, float], tuple[_native.Executor, StepBatch]]


@dataclass(frozen=True, slots=True)
class OutlierCost:
    """Seconds of llm_int8 over those of bf16, for one row and for ROWS of them: without any input
    beyond the threshold, and with some in every row."""

    layer: int
    quiet: tuple[float, float]
    loud: tuple[float, float]

    @property
    def note(self) -> str:
        """What the receipt says."""
        return (
            f"llm_int8: layer {self.layer} takes {self.quiet[0]:.2f} times as long as with bf16 "
            f"weights for one row ({self.quiet[1]:.2f} for {ROWS} rows) where no input exceeds "
            f"{OUTLIER:g}, {self.loud[0]:.2f} times ({self.loud[1]:.2f}) where some do in every "
            f"row (shortest of {STEPS} steps at load)"
        )


def notes(
    spec: DecoderSpec,
    source: WeightSource,
    config: RuntimeConfig,
    items: Mapping[Role, Storage],
    packed: Packed,
) -> tuple[str, ...]:
    """What the receipt says of the first layer that runs as llm_int8; nothing where none does."""
    mine = [r for r, i in items.items() if i.kind == "llm_int8" and r.layer is not None]
    if not mine or config.context < ROWS or mine[0].layer is None:
        return ()
    layer = mine[0].layer
    floats = _in_bf16(source, config, [role for role in mine if role.layer == layer])
    one = replace(spec, layers=(spec.layers[layer],))
    small = replace(config, context=ROWS, kv_tokens=ROWS, max_tokens=ROWS, max_seqs=1)
    layout = memory.kv_layout(one, small)
    blocks = memory.kv_blocks(layout, small)

    def build(plain: bool, factor: float) -> tuple[_native.Executor, StepBatch]:
        held = {**packed, **floats} if plain else packed
        alone = {
            role if role.layer is None else moved(role, 0): entry
            for role, entry in held.items()
            if role.layer in (None, layer)
        }
        only = OneLayer(source, layer, factor)
        model = describe_model(one, only, alone, layout, ROWS)
        batch = StepBatch(layout, ROWS, 1, blocks[0])
        batch.block_table[:, 0, :] = np.arange(blocks[0])
        return _native.Executor(model, describe_runtime(small, blocks, config.threads)), batch

    return (measure(build, layer).note,)


def _in_bf16(source: WeightSource, config: RuntimeConfig, wanted: list[Role]) -> Packed:
    """Matrices unquantized, as they would run."""
    plain = replace(config, format="bf16", keep=(), activations="abf16", keep_activations=())
    items = {role: storage(role, source.tensor(role), plain) for role in wanted}
    weights = pack_all(source, items, max(1, config.threads))
    return {
        role: (weight, items[role].act, items[role].scale, 0.0) for role, weight in weights.items()
    }


def measure(
    build: Build, layer: int, clock: Callable[[], float] = time.perf_counter
) -> OutlierCost:
    """`build(plain, factor)` gives an executor of that one layer, its norms times `factor` and its
    llm_int8 weights in bf16 where `plain`, and a batch of one sequence with room for ROWS."""
    made = [build(True, QUIET), build(False, QUIET), build(False, LOUD)]
    found = [_shortest(made, rows, clock) for rows in (1, ROWS)]
    (quiet, loud), (quiet_rows, loud_rows) = ((b / a, c / a) for a, b, c in found)
    return OutlierCost(layer, (quiet, quiet_rows), (loud, loud_rows))


def _shortest(
    made: list[tuple[_native.Executor, StepBatch]], rows: int, clock: Callable[[], float]
) -> list[float]:
    """Seconds of each one's shortest step of `rows` rows, after one to warm up."""
    found: list[list[float]] = [[] for _ in made]
    for (native, batch), taken in zip(made * (STEPS + 1), found * (STEPS + 1), strict=True):
        native.bind(batch, Results(ROWS))
        batch.n_seqs, batch.row_start[1] = 1, rows
        batch.position[:] = np.arange(ROWS)
        begin = clock()
        native.step(1, None, None)
        taken.append(clock() - begin)
    return [min(taken[1:]) for taken in found]


@dataclass(frozen=True, slots=True)
class OneLayer:
    """A source of one layer, as layer 0, its norms times `factor`; what is in no layer as it is."""

    source: WeightSource
    layer: int
    factor: float

    def tensor(self, role: Role) -> TensorView:
        if role.layer is None:
            return self.source.tensor(role)
        view = self.source.tensor(moved(role, self.layer))
        if not role.part.endswith("norm"):
            return view
        return FloatView(view.float32() * np.float32(self.factor))

    def has(self, role: Role) -> bool:
        return self.source.has(role if role.layer is None else moved(role, self.layer))

    def describe(self) -> str:
        return self.source.describe()


def moved(role: Role, layer: int) -> Role:
    """The same role of another layer."""
    return Role(role.part, layer, role.expert)
