"""The kinds of compression method, and what the driver hands them.

A method is one file that reads like its paper. It never sees the model, files, hooks, devices or
other methods: the driver collects the statistics that it declares in `needs`, runs blocks in order,
checks and applies what it returns, and reports. Fixed order: prepare, transform,
prune, encode, train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from octavo.formats.casts import CastCounts
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


class Needs(Flag):
    """Statistics of a linear layer's input, over the calibration tokens that reach it."""

    NOTHING = 0
    ABSMAX = auto()  # largest |x| per input
    MEAN_ABS = auto()  # mean |x| per input
    HESSIAN = auto()  # 2 / n * sum of x x^T
    SAMPLES = auto()  # some rows of x themselves
    CASTS = auto()  # what casts of the inputs to fp16 and bf16 would do
    FISHER = auto()  # mean of squared gradients of the loss, per weight
    MEAN_SQUARE = auto()  # mean x^2 per input


@dataclass(frozen=True, slots=True)
class LinearStats:
    """What was asked for, collected once per shared input (q, k and v share theirs).

    tokens    rows seen;  absmax, mean_abs  fp32 [in];  hessian  fp32 [in, in], 2 / tokens * X^T X;
    samples   fp32 [rows, in];  fisher  fp32 [out, in];  mean_square  fp32 [in];
    casts     counts by "fp16" and "bf16".
    """

    tokens: int = 0
    absmax: Tensor | None = None
    mean_abs: Tensor | None = None
    hessian: Tensor | None = None
    samples: Tensor | None = None
    fisher: Tensor | None = None
    mean_square: Tensor | None = None
    casts: Mapping[str, CastCounts] | None = None


@dataclass(frozen=True, slots=True)
class ScaleFold:
    """Divide the producer's output by `scale`, multiply the consumers' input columns by it.

    producer   a norm (weight divided) or a linear (rows and bias divided).
    scale      fp32 [channels of the shared input], positive.
    """

    producer: Role
    consumers: tuple[Role, ...]
    scale: Tensor


class BlockView(Protocol):
    """One block as a transform sees it: weights by role, and its modules as functions."""

    @property
    def spec(self) -> DecoderSpec: ...

    @property
    def layer(self) -> int: ...

    def weight(self, role: Role) -> Tensor:
        """fp32 [out, in]; a copy is not made: don't write."""

    def output(self, inspected: Role, x: Tensor, weights: Mapping[Role, Tensor]) -> Tensor:
        """Output of the module around `inspected` (the attention for q, k, v; the MLP for gate and
        up; the linear itself for o and down) for inputs x [rows, in], with some weights replaced.
        For attention, x holds whole sequences of equal length, one after the other, of which the
        last may be cut."""


class Transform(Protocol):
    """Function-preserving: the block's output stays, only the weights become easier to encode."""

    needs: ClassVar[Needs]

    def plan(
        self, block: BlockView, stats: Mapping[Role, LinearStats], target: NumberFormat
    ) -> Sequence[ScaleFold]: ...


class Pruner(Protocol):
    """Chooses weights to set to zero, which the encoder of the same matrix then stores as exact
    zeros: the driver refuses an encoding that doesn't.

    Raises NumericsError when the statistics can't be used; the matrix then stays whole, and that is
    noted.
    """

    needs: ClassVar[Needs]

    def mask(self, weight: Tensor, stats: LinearStats) -> Tensor:
        """bool [out, in], True where a weight stays. `weight` is what transforms left, fp32."""


class Encoder(Protocol):
    """Chooses codes and scales for one weight.

    weight  fp32 [out, in];  mask  bool [out, in] or None: False weights become exact zeros.
    Raises FormatError when `target` is not one of its kinds or the shape can't take it, and
    NumericsError when the statistics can't be used (the driver then falls back as the recipe says).

    Two attributes are optional: `skips`, parts that the method isn't meant for, and `sequential`,
    True when statistics shall come from the block with its earlier matrices encoded.
    """

    @property
    def needs(self) -> Needs:
        """May depend on the options."""

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """One matrix as a train step finds it.

    load   the encoding, whole
    mask   bool [out, in], False where a pruner wants an exact zero; None: nothing was pruned
    """

    load: Callable[[], QuantizedTensor]
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TrainTask:
    """What a train step is handed, after everything is encoded.

    source     the model that is compressed, as it came
    encoded    the matrices that the step selects and a step before encoded
    vectors    loads norms and biases as they stand, fp32: a transform may have changed them
    tokens     the calibration tokens, int64 [sequences, length]; None unless `needs_tokens`
    directory  the step's own, emptied by nobody: what is left there is found again after a kill
    """

    source: WeightSource
    spec: DecoderSpec
    encoded: Mapping[Role, Encoded]
    vectors: Mapping[Role, Callable[[], Tensor]]
    tokens: npt.NDArray[np.int64] | None
    directory: Path
    seed: int


class Trainer(Protocol):
    """Improves what is encoded; deterministic, so that a killed run ends with the same bytes."""

    needs_tokens: ClassVar[bool]

    def train(self, task: TrainTask) -> Mapping[Role, QuantizedTensor | Tensor]:
        """What takes the place of matrices of `encoded` (same shape; zeros of the mask kept) and,
        as fp32 tensors, of vectors. Raises NumericsError when the loss is no number."""


class TrainableBlock(Protocol):
    """One block as an encoder of whole blocks sees it."""

    @property
    def sequences(self) -> int:
        """How many calibration sequences there are."""

    def inputs(self, sequence: int) -> Tensor:
        """Hidden states before the block, fp32 [length, hidden]."""

    def weight(self, role: Role) -> Tensor:
        """fp32 [out, in]; a copy is not made: don't write."""

    def output(self, x: Tensor, weights: Mapping[Role, Tensor]) -> Tensor:
        """Hidden states behind the block for one sequence, with some weights replaced, in which it
        is differentiable."""


class BlockEncoder(Protocol):
    """Chooses codes and scales for matrices of one block together.

    masks  as for an encoder, of those roles that were pruned.
    Raises as an encoder does; on NumericsError all of them fall back.
    """

    needs: ClassVar[Needs]

    def encode_block(
        self,
        block: TrainableBlock,
        targets: Mapping[Role, NumberFormat],
        masks: Mapping[Role, Tensor],
    ) -> Mapping[Role, QuantizedTensor]: ...


class Preparation(Protocol):
    """A transform of the whole model, before all else: it computes the same, in other weights."""

    def respec(self, spec: DecoderSpec) -> DecoderSpec:
        """The spec of what comes out. Raises UnsupportedError for a model that it can't take."""

    def prepare(self, source: WeightSource, spec: DecoderSpec) -> WeightSource:
        """The weights, computed when they are read; `spec` is the one before."""
