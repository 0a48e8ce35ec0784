"""What a compression did, matrix by matrix, as data that the artifact carries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """One encoded matrix.

    bits          per weight as stored, scales included, what pruning saves not counted
    weight_error  |W - Q|^2 / |W|^2; after a train step, W is what it found encoded
    output_error  tr(D H D^T) / tr(W H W^T) with D = W - Q, where the step asked for H; else None
                  (as when it is no finite number)
    fallback      why another method than the step's encoded it; "" when none did
    casts         of a plain float: what the cast did to "weights", and what one to fp16 or bf16
                  would do to the calibration "inputs in fp16", "inputs in bf16"
    zeros         share of its weights that a pruner set to 0; None: nothing pruned it
    """

    name: str
    method: str
    format: str
    bits: float
    weight_error: float
    output_error: float | None = None
    fallback: str = ""
    zeros: float | None = None
    casts: Mapping[str, Mapping[str, int]] | None = None


@dataclass(frozen=True, slots=True)
class FoldReport:
    """One scale that a transform moved. `gap`: how far the block's output moved in fp32, at most;
    beyond `tolerance` the fold was rolled back (`applied` is False). None: no finite number, or
    not looked at because of `reason`."""

    producer: str
    method: str
    applied: bool
    gap: float | None
    tolerance: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StageReport:
    """A block, or what lies outside the blocks. `notes`: what else a reader should know; `maxima`:
    the largest calibration input of each matrix whose activations are static."""

    name: str
    matrices: tuple[MatrixReport, ...] = ()
    folds: tuple[FoldReport, ...] = ()
    notes: tuple[str, ...] = ()
    maxima: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StageReport:
        return cls(
            content["name"],
            tuple(MatrixReport(**item) for item in content["matrices"]),
            tuple(FoldReport(**item) for item in content["folds"]),
            tuple(content["notes"]),
            content["maxima"],
        )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """All stages in order. Bytes are those of tensors in the files."""

    stages: tuple[StageReport, ...]
    source_bytes: int
    bytes: int
    parameters: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per parameter, everything counted."""
        return 8 * self.bytes / self.parameters

    def matrices(self) -> Iterator[MatrixReport]:
        """One of each name: what was done to it last."""
        found = {matrix.name: matrix for stage in self.stages for matrix in stage.matrices}
        yield from found.values()

    def fallbacks(self) -> tuple[MatrixReport, ...]:
        """Matrices that another method than their step's encoded."""
        return tuple(matrix for matrix in self.matrices() if matrix.fallback)

    def notes(self) -> tuple[str, ...]:
        return tuple(note for stage in self.stages for note in stage.notes)

    def rolled_back(self) -> tuple[FoldReport, ...]:
        return tuple(fold for stage in self.stages for fold in stage.folds if not fold.applied)

    def to_dict(self) -> dict[str, object]:
        return {
            "source_bytes": self.source_bytes,
            "bytes": self.bytes,
            "parameters": self.parameters,
            "bits_per_weight": self.bits_per_weight,
            "stages": [stage.to_dict() for stage in self.stages],
        }


def by_format(matrices: Iterable[MatrixReport]) -> dict[tuple[str, str], list[MatrixReport]]:
    """Matrices grouped by (format, method that encoded them), in order of appearance."""
    groups: dict[tuple[str, str], list[MatrixReport]] = {}
    for matrix in matrices:
        groups.setdefault((matrix.format, matrix.method), []).append(matrix)
    return groups
