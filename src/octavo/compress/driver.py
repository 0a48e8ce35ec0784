"""The driver: blocks in order, each on what the compressed blocks before it give.

It loads a block, gathers the statistics that its steps declare (once per shared input), applies
and checks the transforms' folds, prunes, encodes, runs the compressed block to get the next one's
inputs, and writes the stage down. Only one block's weights and one sequence's activations are in
memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.compress.base import LinearStats, Needs, ScaleFold
from octavo.compress.block import (
    BlockDecoder,
    View,
    WholeBlock,
    folded,
    load_block,
    load_tensor,
    unchanged,
)
from octavo.compress.fisher import FisherFile, squared_gradients
from octavo.compress.losses import dequantized, matrix_report
from octavo.compress.plan import FIRST, LAST, Plan
from octavo.compress.prepared import check_same
from octavo.compress.recipe import role_name
from octavo.compress.report import FoldReport, MatrixReport, StageReport
from octavo.compress.sequential import GROUPS, Gather, SequentialBlock
from octavo.compress.state import HiddenStates, Stage, WorkDirectory
from octavo.compress.stats import StatsGatherer, of_both_uses, rescaled, sampled_sequences
from octavo.compress.table import build_encoder
from octavo.compress.training import check_zeros, train_stage
from octavo.core.allocator import return_freed_memory
from octavo.core.errors import FormatError, InternalError, NumericsError
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.artifact import artifact_name
from octavo.io.weights import WeightSource
from octavo.spec.decoder import Part, Role
from octavo.spec.graph import fold_edges, head_role, role_shape, roles, shared_inputs

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Weights = Mapping[Role, Tensor]
Stats = dict[Role, LinearStats]
Progress = Callable[[str, int, int], None]

_CHECKED_TOKENS = 128  # of the sequence on which a fold is checked


class Driver:
    """Compresses one model into stages of a working directory, resuming where it ended.

    tokens  calibration tokens, int64 [sequences, length]; read only when the plan needs data.
    """

    def __init__(
        self, source: WeightSource, plan: Plan, tokens: I64 | None, work: WorkDirectory
    ) -> None:
        if plan.needs_data and tokens is None:
            raise InternalError("this recipe needs calibration tokens")
        self._original, self._source = source, plan.prepared(source)
        self._plan, self._work = plan, work
        self._made: dict[Role, QuantizedTensor | NumericsError] = {}  # of the current block
        self._spec = plan.spec
        self._given = tokens
        self._fisher = FisherFile(work.path)
        self._tokens = tokens if plan.gathers else None
        self._halves = plan.recipe.calibration.precision == "bf16"

    def run(self, progress: Progress | None = None) -> None:
        """Finish every stage. Raises NumericsError when a source weight is not finite, or when
        an encoder fails and the recipe has no fallback."""
        stages = self._plan.stages()
        for done, name in enumerate(stages, 1):
            if not self._work.finished(name):
                self._finish(name)
            if progress:
                progress(name, done, len(stages))

    def _finish(self, name: str) -> None:
        return_freed_memory()  # else a head of 0.5 GB comes on top of 0.4 that the blocks left
        if name == FIRST:
            stage = self._first()
        elif name == LAST:
            stage = self._last()
        elif name.isdigit():
            stage = self._block(int(name))
        else:
            stage = train_stage(name, self._plan, self._source, self._given, self._work)
        self._work.write(name, stage)
        if self._tokens is not None and (name == LAST or name.isdigit()):
            self._hidden(len(self._spec.layers) if name == LAST else int(name)).remove()

    def _first(self) -> Stage:
        """The embedding, if it needs no data, and what it gives for the calibration tokens."""
        stage = Stage(StageReport(FIRST), {}, {})
        if self._plan.fisher and not self._fisher.exists():
            assert self._given is not None
            wanted = self._plan.fisher
            self._fisher.write(squared_gradients(self._source, self._spec, self._given, wanted))
        table: Tensor | None = None
        if self._plan.preparations:
            notes = check_same(self._original, self._source, self._plan)
            stage.report = replace(stage.report, notes=notes)
        if self._plan.encoded_first():
            table = self._store(stage, {Role("embed"): None}, {}).get(Role("embed"))
        if self._tokens is not None:
            if table is None:
                table = load_tensor(self._source, Role("embed"))
            self._hidden(0).write(self._embedded(table))
        return stage

    def _embedded(self, table: Tensor) -> Iterator[F32]:
        assert self._tokens is not None
        decoder = BlockDecoder(self._spec, {Role("embed"): table})
        for tokens in self._tokens:
            yield decoder.embed(tokens).numpy()

    def _block(self, layer: int) -> Stage:
        weights = load_block(self._source, self._spec, layer)
        sequential = self._tokens is not None and self._plan.sequential(layer)
        needs = self._plan.transform_needs if sequential else self._plan.needs
        stats = self._gather(layer, weights, needs)
        stage = Stage(StageReport(f"layer {layer}"), {}, {})
        after, stats, folds = self._transformed(layer, weights, stats)
        changed = {role: after[role] if after[role] is not w else None
                   for role, w in weights.items()}  # fmt: skip
        self._made = self._together(layer, after, stats)
        if sequential:
            self._in_order(stage, layer, changed, after)
        else:
            encoded = self._store(stage, changed, stats, after)
            if self._tokens is not None:
                now = {**after, **encoded}
                compressed = BlockDecoder(self._spec, now, halves=self._halves)
                inputs = self._hidden(layer).read()
                outputs = (compressed.run_layer(layer, torch.from_numpy(x)).numpy() for x in inputs)
                self._hidden(layer + 1).write(outputs)
        stage.report = replace(stage.report, folds=tuple(folds))
        return stage

    def _together(
        self, layer: int, weights: Weights, stats: Stats
    ) -> dict[Role, QuantizedTensor | NumericsError]:
        """What encoders of whole blocks make of this one, or why they can't."""
        made: dict[Role, QuantizedTensor | NumericsError] = {}
        groups: dict[int, list[Role]] = {}
        for role, (step, _) in self._plan.together.items():
            if role.layer == layer:
                groups.setdefault(id(step), []).append(role)
        for roles_of in groups.values():
            assert self._tokens is not None
            encoder = self._plan.together[roles_of[0]][1]
            targets = {role: self._plan.steps[role].target for role in roles_of}
            seen = {role: stats.get(role, LinearStats()) for role in roles_of}
            masks = {role: self._mask(role, weights[role], seen[role], []) for role in roles_of}
            kept = {role: mask for role, mask in masks.items() if mask is not None}
            block = WholeBlock(self._spec, layer, len(self._tokens), self._hidden(layer), weights)
            try:
                made |= encoder.encode_block(block, targets, kept)
            except NumericsError as error:
                made |= dict.fromkeys(roles_of, error)
            except FormatError as error:
                raise FormatError(f"layers.{layer}: {error}") from error
        return made

    def _in_order(
        self, stage: Stage, layer: int, tensors: Mapping[Role, Tensor | None], after: Weights
    ) -> None:
        """Encode group by group, each on what the block gives with the earlier ones encoded."""
        assert self._tokens is not None
        length, now = self._tokens.shape[1], dict(after)
        passes = SequentialBlock(
            self._spec, layer, self._hidden(layer), length, self._work.path, self._halves
        )
        for group, parts in enumerate(GROUPS):
            leader, gatherers = self._gatherers(layer, self._plan.encoder_needs, parts)
            passes.pass_group(group, now, self._gather_into(gatherers))
            found = {first: gatherer.stats() for first, gatherer in gatherers.items()}
            stats = {role: found[first] for role, first in leader.items()}
            mine = {role: t for role, t in tensors.items() if role.part in parts}
            now.update(self._store(stage, mine, stats, after))
        self._hidden(layer + 1).write(passes.outputs(now))
        grouped = {part for parts in GROUPS for part in parts}
        rest = {role: t for role, t in tensors.items() if role.part not in grouped}
        self._store(stage, rest, {}, after)

    def _gather_into(self, gatherers: Mapping[Role, StatsGatherer]) -> Gather:
        assert self._tokens is not None
        kept = sampled_sequences(*self._tokens.shape)

        def gather(sequence: int, role: Role, x: Tensor) -> None:
            if role in gatherers:
                gatherers[role].add(x, sequence in kept)

        return gather

    def _last(self) -> Stage:
        """The final norm, the head, and a tied embedding whose encoder needs data."""
        stage = Stage(StageReport(LAST), {}, {})
        left = [role for role in roles(self._spec) if role.layer is None]
        if self._plan.encoded_first():
            left.remove(Role("embed"))
        stats = self._head_stats()
        self._store(stage, dict.fromkeys(left), stats)
        stage.report = replace(stage.report, maxima=self._maxima(stats))
        return stage

    def _maxima(self, stats: Stats) -> dict[str, float]:
        """The largest input of each of these whose activations are static."""
        found: dict[str, float] = {}
        for role, seen in stats.items():
            if self._plan.static(role):
                if seen.absmax is None:
                    raise NumericsError(
                        f"{role_name(role)}: no calibration token reached it, so that activations "
                        "a8_static have no scale; use a8_token, or more text"
                    )
                found[role_name(role)] = float(seen.absmax.max())
        return found

    def _head_stats(self) -> Stats:
        head = head_role(self._spec)
        if self._tokens is None or not self._plan.needs(head):
            return {}
        norm = Role("final_norm")
        decoder = BlockDecoder(self._spec, {norm: load_tensor(self._source, norm)})
        gatherer = StatsGatherer(self._plan.needs(head), self._spec.hidden, self._halves)
        kept = sampled_sequences(*self._tokens.shape)
        for n, x in enumerate(self._hidden(len(self._spec.layers)).read()):
            gatherer.add(decoder.final_norm(torch.from_numpy(x)), n in kept)
        stats = gatherer.stats()
        return {head: of_both_uses(stats) if self._spec.tied_head else stats}

    def _gather(self, layer: int, weights: Weights, needs: Callable[[Role], Needs]) -> Stats:
        """Statistics per role; roles that share an input share them."""
        if self._tokens is None:
            return {}
        leader, gatherers = self._gatherers(layer, needs)
        if gatherers:
            decoder = BlockDecoder(self._spec, weights, halves=self._halves)
            gather = self._gather_into(gatherers)
            for n, x in enumerate(self._hidden(layer).read()):
                decoder.watcher = partial(gather, n)
                decoder.run_layer(layer, torch.from_numpy(x))
        stats = {role: gatherer.stats() for role, gatherer in gatherers.items()}
        return {role: stats[first] for role, first in leader.items()}

    def _gatherers(
        self, layer: int, needs_of: Callable[[Role], Needs], parts: tuple[Part, ...] = ()
    ) -> tuple[dict[Role, Role], dict[Role, StatsGatherer]]:
        """(role -> the role of its group that is watched, watched role -> its gatherer)."""
        leader: dict[Role, Role] = {}
        gatherers: dict[Role, StatsGatherer] = {}
        for group in shared_inputs(self._spec, layer):
            needs = Needs.NOTHING
            for role in group:
                if not parts or role.part in parts:
                    needs |= needs_of(role)
            if needs:
                leader.update(dict.fromkeys(group, group[0]))
                width = role_shape(self._spec, group[0])[1]
                gatherers[group[0]] = StatsGatherer(needs, width, self._halves)
        return leader, gatherers

    def _transformed(
        self, layer: int, weights: Weights, stats: Stats
    ) -> tuple[Weights, Stats, list[FoldReport]]:
        reports: list[FoldReport] = []
        for step, transform, chosen in self._plan.transforms:
            mine = [role for role in weights if role in chosen]
            seen = {role: stats[role] for role in mine if role in stats}
            if not seen:
                continue
            assert self._tokens is not None
            view = View(self._spec, layer, self._tokens.shape[1], weights)
            try:
                folds = transform.plan(view, seen, self._target(mine))
            except NumericsError as error:
                where = f"layers.{layer}"
                reports.append(FoldReport(where, step.method, False, None, None, str(error)))
                continue
            for fold in folds:
                weights, stats, report = self._folded(layer, weights, stats, fold, step.method)
                reports.append(report)
        return weights, stats, reports

    def _folded(
        self, layer: int, weights: Weights, stats: Stats, fold: ScaleFold, method: str
    ) -> tuple[Weights, Stats, FoldReport]:
        """Apply one fold if the block's output stays; else everything as it was."""
        name = role_name(fold.producer)
        try:
            after = {**weights, **folded(self._spec, layer, weights, fold)}
        except NumericsError as error:
            return weights, stats, FoldReport(name, method, False, None, None, str(error))
        sample = torch.from_numpy(next(self._hidden(layer).read())[:_CHECKED_TOKENS])
        same, gap, tolerance = unchanged(self._spec, layer, weights, after, sample)
        if not same:
            reason = "the block's output moved by more than rounding"
            report = FoldReport(name, method, False, _finite(gap), _finite(tolerance), reason)
            return weights, stats, report
        edge = next(e for e in fold_edges(self._spec, layer) if e.source == fold.producer)
        scaled = {role: rescaled(s, fold.scale.float()) if role in edge.targets else s
                  for role, s in stats.items()}  # fmt: skip
        return after, scaled, FoldReport(name, method, True, gap, tolerance)

    def _target(self, chosen: list[Role]) -> NumberFormat:
        """The format that most of these weights will have."""
        sizes: dict[str, int] = {}
        for role in chosen:
            rows, width = role_shape(self._spec, role)
            name = self._plan.steps[role].format
            sizes[name] = sizes.get(name, 0) + rows * width
        return NumberFormat.parse(max(sizes, key=lambda name: sizes[name]))

    def _store(
        self,
        stage: Stage,
        tensors: Mapping[Role, Tensor | None],
        stats: Stats,
        loaded: Weights | None = None,
    ) -> dict[Role, Tensor]:
        """Put tensors into the stage: those that a step selects encoded, others as the source has
        them, or in fp32 where a fold changed them (a value that isn't None). Returns the values of
        what was encoded."""
        values: dict[Role, Tensor] = {}
        matrices: list[MatrixReport] = []
        notes: list[str] = []
        for role, changed in tensors.items():
            name = artifact_name(self._spec, role)
            if role in self._plan.steps:
                weight = loaded[role] if loaded else load_tensor(self._source, role)
                seen = self._with_gradients(role, stats.get(role, LinearStats()))
                mask = self._mask(role, weight, seen, notes)
                tensor, values[role], report = self._encode(role, weight, seen, mask)
                if mask is None and report.method == self._pruning(role):
                    mask = values[role] != 0
                    report = replace(report, zeros=_share(~mask))
                stage.add_matrix(name, tensor)
                if mask is not None:
                    stage.masks[name] = mask.numpy()
                matrices.append(report)
            elif changed is not None:
                stage.add_float32(name, changed.numpy())
            else:
                self._copy(stage, name, role)
        before = stage.report
        matrices, notes = [*before.matrices, *matrices], [*before.notes, *notes]
        maxima = self._maxima({role: stats[role] for role in tensors if role in stats})
        maxima = {**before.maxima, **maxima}
        stage.report = StageReport(before.name, tuple(matrices), (), tuple(notes), maxima)
        return values

    def _with_gradients(self, role: Role, stats: LinearStats) -> LinearStats:
        if role not in self._plan.fisher:
            return stats
        assert self._given is not None
        return replace(stats, tokens=self._given.size, fisher=self._fisher.read(role))

    def _mask(
        self, role: Role, weight: Tensor, stats: LinearStats, notes: list[str]
    ) -> Tensor | None:
        """What the pruner keeps of a matrix; None: all of it."""
        if role not in self._plan.pruners:
            return None
        step, pruner = self._plan.pruners[role]
        try:
            if pruner.needs and not stats.tokens:
                raise NumericsError("no calibration token reached it")
            return pruner.mask(weight, stats)
        except NumericsError as error:
            if self._plan.recipe.fallback == "none":
                raise NumericsError(f"{role_name(role)}: {error}") from error
            notes.append(f"{role_name(role)} is not pruned by {step.method}: {error}")
            return None

    def _pruning(self, role: Role) -> str:
        """The method of an encoder that prunes by itself, so that its zeros are a mask; else ""."""
        encoder = self._plan.encoders.get(role)  # none of its own where blocks are encoded whole
        return self._plan.steps[role].method if getattr(encoder, "prunes", False) else ""

    def _copy(self, stage: Stage, name: str, role: Role) -> None:
        view = self._source.tensor(role)
        if len(view.shape) == 1:
            stage.add_float32(name, view.float32())
        else:
            stage.add_matrix(name, view.quantized(0, view.shape[0]))
            load_tensor(self._source, role)  # refuses weights that aren't finite

    def _encode(
        self, role: Role, weight: Tensor, stats: LinearStats, mask: Tensor | None
    ) -> tuple[QuantizedTensor, Tensor, MatrixReport]:
        """The encoding, its values, and what it lost."""
        step = self._plan.steps[role]
        method, reason = step.method, ""
        try:
            tensor = self._encoding(role, weight, stats, mask)
        except NumericsError as error:
            if self._plan.recipe.fallback == "none":
                raise NumericsError(f"{role_name(role)}: {error}") from error
            method, reason = self._plan.recipe.fallback, str(error)
            tensor = build_encoder(method, {}).encode(weight, step.target, stats, mask)
        except FormatError as error:
            raise FormatError(f"{role_name(role)}: {error}") from error
        check_zeros(role_name(role), tensor, mask)
        values = dequantized(tensor)
        report = matrix_report(role_name(role), method, tensor, (weight, values), stats)
        zeros = None if mask is None else _share(~mask)
        return tensor, values, replace(report, fallback=reason, zeros=zeros)

    def _encoding(
        self, role: Role, weight: Tensor, stats: LinearStats, mask: Tensor | None
    ) -> QuantizedTensor:
        """What the step's method makes of a matrix. Raises NumericsError where it can't."""
        if role in self._plan.together:
            made = self._made[role]
            if isinstance(made, NumericsError):
                raise made
            return made
        step, encoder = self._plan.steps[role], self._plan.encoders[role]
        if role.part in getattr(encoder, "skips", ()):
            raise NumericsError(f"{step.method} is not for {role.part}")
        if encoder.needs and not stats.tokens:
            raise NumericsError("no calibration token reached it")
        return encoder.encode(weight, step.target, stats, mask)

    def _hidden(self, layer: int) -> HiddenStates:
        assert self._tokens is not None
        path = self._work.hidden(layer)
        return HiddenStates(path, self._tokens.shape[1], self._spec.hidden)


def _share(chosen: Tensor) -> float:
    return float(chosen.float().mean(dtype=torch.float64))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
