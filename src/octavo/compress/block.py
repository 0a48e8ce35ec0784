"""One block of the reference decoder at a time: run it, watch its inputs, fold scales into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.backends.base import KvFormat
from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.kv import WholeKv
from octavo.backends.reference.options import Precision, ReferenceOptions
from octavo.backends.reference.weights import Formats, Weights
from octavo.compress.base import ScaleFold
from octavo.compress.state import HiddenStates
from octavo.core.errors import InternalError, NumericsError
from octavo.formats.number_format import FP32
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Part, Role
from octavo.spec.graph import FoldEdge, fold_edges, linear_roles, role_shape, roles

F32 = npt.NDArray[np.float32]
Watcher = Callable[[Role, Tensor], None]

_SLICE = 1 << 21  # values, 8 MB: C libraries map blocks of more than 32 MB anew every time
_ROWS = 256  # of a sequence that pass an MLP together, for the same reason
_EPS = 2.0**-24  # half a unit in the last place of fp32


class BlockDecoder(ReferenceDecoder):
    """A decoder that holds only the weights it is given, and shows linear inputs to a watcher.

    halves  products take inputs and weights rounded to bf16, and their sums are rounded to it;
            between them, and for the watcher, all is fp32.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Mapping[Role, Tensor],
        dtype: Precision = "fp32",
        halves: bool = False,
    ) -> None:
        formats: Formats = dict.fromkeys(linear_roles(spec), FP32)
        kept: Weights = dict(weights)
        super().__init__(spec, kept, formats, ReferenceOptions(dtype=dtype))
        self.watcher: Watcher | None = None
        self._halves: dict[Role, Tensor] | None = {} if halves else None

    def run_layer(self, layer: int, x: Tensor, kv: KvFormat = "fp32") -> Tensor:
        """The block's output [tokens, hidden] for one whole sequence [tokens, hidden]."""
        with torch.no_grad():
            return self.layer(layer, x, self._rope(layer, len(x)), WholeKv(kv))

    def learnable_layer(self, layer: int, x: Tensor) -> Tensor:
        """The same, for gradients with respect to the weights."""
        return self.layer(layer, x, self._rope(layer, len(x)), WholeKv())

    def attention(self, layer: int, x: Tensor) -> Tensor:
        """The attention's output for one whole sequence of normed inputs."""
        with torch.no_grad():
            return self._attention(layer, x, self._rope(layer, len(x)), WholeKv())

    def mlp(self, layer: int, x: Tensor, expert: int | None) -> Tensor:
        """The MLP's output for normed rows; of one expert where that is given."""
        with torch.no_grad():
            return self._mlp(layer, x) if expert is None else self._gated(layer, x, expert)

    def normed_input(self, layer: int, x: Tensor, norm: Part) -> Tensor:
        """What the readers of `norm` get, for hidden states x."""
        with torch.no_grad():
            return self._norm(x, norm, layer)

    def mixed(self, layer: int, x: Tensor) -> Tensor:
        """o's input for one whole sequence of hidden states."""
        with torch.no_grad():
            normed = self._norm(x, "attn_norm", layer)
            return self._mixed(layer, normed, self._rope(layer, len(x)), WholeKv())

    def after_attention(self, layer: int, x: Tensor, mixed: Tensor) -> Tensor:
        """The hidden states between attention and MLP, from those before and o's input."""
        with torch.no_grad():
            branch = self._linear(mixed, Role("o", layer), Role("o_bias", layer))
            return self._added(x, branch, "attn_post_norm", layer)

    def product(self, layer: int, x: Tensor) -> Tensor:
        """down's input of a dense MLP, for the hidden states between attention and MLP."""
        with torch.no_grad():
            normed = self._norm(x, "mlp_norm", layer)
            return torch.cat([self._product(layer, rows, None) for rows in pieces(normed, _ROWS)])

    def after_mlp(self, layer: int, x: Tensor, product: Tensor | None) -> Tensor:
        """The block's output from the hidden states in its middle and, if known, down's input."""
        with torch.no_grad():
            if product is None:
                branch = self._mlp(layer, self._norm(x, "mlp_norm", layer))
            else:
                branch = self._linear(product, Role("down", layer), Role("down_bias", layer))
            return self._added(x, branch, "mlp_post_norm", layer)

    def linear(self, role: Role, x: Tensor) -> Tensor:
        """One linear layer's output without its bias."""
        with torch.no_grad():
            return super()._linear(x, role)

    def final_norm(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._norm(x, "final_norm")

    def _gated(self, layer: int, x: Tensor, expert: int | None) -> Tensor:
        parts = pieces(x, _ROWS)
        return torch.cat([super(BlockDecoder, self)._gated(layer, rows, expert) for rows in parts])

    def _linear(self, x: Tensor, role: Role, bias: Role | None = None) -> Tensor:
        if self.watcher is not None:
            self.watcher(role, x)
        if self._halves is None:
            return super()._linear(x, role, bias)
        if role not in self._halves:
            self._halves[role] = self.weights[role].bfloat16()
        y = torch.nn.functional.linear(x.bfloat16(), self._halves[role]).float()
        return y if bias not in self.weights else y.add_(self.weights[bias])

    def _rope(self, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
        return self._table(self.spec.layers[layer].attention.rope, np.arange(tokens))


@dataclass(frozen=True, slots=True)
class View:
    """The BlockView that transforms get. `length`: tokens of each calibration sequence."""

    spec: DecoderSpec
    layer: int
    length: int
    weights: Mapping[Role, Tensor]

    def weight(self, role: Role) -> Tensor:
        return self.weights[role]

    def output(self, inspected: Role, x: Tensor, weights: Mapping[Role, Tensor]) -> Tensor:
        decoder = BlockDecoder(self.spec, {**self.weights, **weights})
        match inspected.part:
            case "q" | "k" | "v":
                texts = pieces(x, self.length)
                return torch.cat([decoder.attention(self.layer, text) for text in texts])
            case "gate" | "up":
                return decoder.mlp(self.layer, x, inspected.expert)
            case _:
                return decoder.linear(inspected, x)


@dataclass(frozen=True, slots=True)
class WholeBlock:
    """The TrainableBlock that encoders of whole blocks get. `states`: inputs, read when wanted."""

    spec: DecoderSpec
    layer: int
    sequences: int
    states: HiddenStates
    weights: Mapping[Role, Tensor]

    def inputs(self, sequence: int) -> Tensor:
        return torch.from_numpy(self.states.read_one(sequence))

    def weight(self, role: Role) -> Tensor:
        return self.weights[role]

    def output(self, x: Tensor, weights: Mapping[Role, Tensor]) -> Tensor:
        decoder = BlockDecoder(self.spec, {**self.weights, **weights})
        return decoder.learnable_layer(self.layer, x)


def load_block(source: WeightSource, spec: DecoderSpec, layer: int | None) -> dict[Role, Tensor]:
    """fp32 tensors of one block; None: those outside the blocks. Pages of the file are dropped.

    Raises NumericsError for a weight that is NaN or infinite.
    """
    return {role: load_tensor(source, role) for role in roles(spec) if role.layer == layer}


def load_tensor(source: WeightSource, role: Role) -> Tensor:
    """One tensor in fp32. Raises NumericsError for a weight that is NaN or infinite."""
    view = source.tensor(role)
    read = view.float32()
    values = torch.from_numpy(read if read.flags.writeable else read.copy())
    view.drop()
    if not all(part.isfinite().all() for part in slices(values)):
        raise NumericsError(
            f"{source.describe()}: {role} holds NaN or infinite weights; fetch the model again, or "
            "start from an undamaged one"
        )
    return values


def pieces(x: Tensor, rows: int) -> list[Tensor]:
    """Of the first axis, at least one."""
    return [x[at : at + rows] for at in range(0, max(1, len(x)), rows)]


def slices(values: Tensor) -> list[Tensor]:
    """Of the first axis, small enough that temporaries stay in memory that the process has, instead
    of being mapped, cleared and unmapped for each operation."""
    return pieces(values, max(1, _SLICE * len(values) // max(1, values.numel())))


def folded(
    spec: DecoderSpec, layer: int, weights: Mapping[Role, Tensor], fold: ScaleFold
) -> dict[Role, Tensor]:
    """New tensors of everything that a fold changes. Raises NumericsError for scales that aren't
    positive and finite, or that differ where one producer channel feeds several inputs."""
    edge = _edge(spec, layer, fold)
    scale = fold.scale.float()
    if not (scale.isfinite().all() and (scale > 0).all()):
        raise NumericsError(f"{fold.producer}: a scale to fold is not positive and finite")
    changed = {role: weights[role] * scale for role in edge.targets}
    mine = _producer_scale(edge, scale)
    for role in (edge.source, _bias(edge.source)):
        if role in weights:
            tensor = weights[role]
            changed[role] = tensor / (mine[:, None] if tensor.ndim == 2 else mine)
    return changed


def unchanged(
    spec: DecoderSpec,
    layer: int,
    before: Mapping[Role, Tensor],
    after: Mapping[Role, Tensor],
    x: Tensor,
) -> tuple[bool, float, float]:
    """Whether a block computes the same with both weights: (same, largest gap, tolerance).

    The yardstick is the block's own rounding: what fp32 loses against fp64 with the old weights.
    Folding rounds each folded weight once more, which is of that size; 16 times it is the limit.
    """
    exact = _block_output(spec, layer, before, x, "fp64")
    noise = (_block_output(spec, layer, before, x, "fp32") - exact).abs().max()
    gap = float((_block_output(spec, layer, after, x, "fp32") - exact).abs().max())
    tolerance = float(16 * (noise + _EPS * exact.abs().max()))
    return gap <= tolerance, gap, tolerance


def _block_output(
    spec: DecoderSpec, layer: int, weights: Mapping[Role, Tensor], x: Tensor, dtype: Precision
) -> Tensor:
    kind = torch.float64 if dtype == "fp64" else torch.float32
    decoder = BlockDecoder(spec, {role: w.to(kind) for role, w in weights.items()}, dtype)
    return decoder.run_layer(layer, x.to(kind)).double()


def _edge(spec: DecoderSpec, layer: int, fold: ScaleFold) -> FoldEdge:
    for edge in fold_edges(spec, layer):
        if edge.source == fold.producer:
            if set(fold.consumers) - set(edge.targets):
                break
            _check_width(spec, edge, fold)
            return edge
    raise InternalError(f"no scale can move from {fold.producer} to {_words(fold.consumers)}")


def _check_width(spec: DecoderSpec, edge: FoldEdge, fold: ScaleFold) -> None:
    width = role_shape(spec, edge.targets[0])[-1]
    if tuple(fold.scale.shape) != (width,):
        raise InternalError(
            f"{fold.producer}: scales are {list(fold.scale.shape)}, its readers have {width} inputs"
        )


def _producer_scale(edge: FoldEdge, scale: Tensor) -> Tensor:
    """Per channel of the producer. With grouped queries, `repeat` heads read the same one."""
    if edge.repeat == 1:
        return scale
    heads = scale.reshape(-1, edge.repeat, edge.block)
    if not torch.equal(heads, heads[:, :1].expand_as(heads)):
        raise NumericsError(f"{edge.source}: heads that share a value head need equal scales")
    return heads[:, 0].reshape(-1)


def _bias(role: Role) -> Role:
    part = {"v": "v_bias", "up": "up_bias"}.get(role.part)
    return Role(part, role.layer) if part else role  # type: ignore[arg-type]


def _words(found: Iterable[Role]) -> str:
    return ", ".join(map(str, found))
