"""True-sequential calibration (GPTQ's `--true-sequential`): a block, group by group.

q, k and v, then o, then gate and up, then down: the statistics of each group come from the block
whose earlier groups are encoded already, so that it can make up for their errors as well. What a
group's inputs were computed from is kept on disk, so that all four passes together cost about as
much as one through the whole block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.compress.block import BlockDecoder
from octavo.compress.state import HiddenStates
from octavo.spec.decoder import DecoderSpec, DenseMlp, Part, Role
from octavo.spec.graph import role_shape

F32 = npt.NDArray[np.float32]
Gather = Callable[[int, Role, Tensor], None]  # sequence, role, its input's rows

GROUPS: tuple[tuple[Part, ...], ...] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


class SequentialBlock:
    """The calibration sequences on their way through one block.

    inputs   of the block; read again by each of the first three groups.
    scratch  directory for what lies between them.
    halves   of the decoder (BlockDecoder).

    `pass_group` is called for each of GROUPS in order, then `outputs`, each with the weights as
    they stand by then: earlier groups encoded.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        layer: int,
        inputs: HiddenStates,
        length: int,
        scratch: Path,
        halves: bool = False,
    ) -> None:
        self._spec, self._layer, self._inputs, self._halves = spec, layer, inputs, halves
        self._dense = isinstance(spec.layers[layer].mlp, DenseMlp)
        heads = role_shape(spec, Role("o", layer))[1]
        self._mixed = HiddenStates(scratch / "mixed.f32", length, heads)
        self._middle = HiddenStates(scratch / "middle.f32", length, spec.hidden)
        width = spec.layers[layer].mlp.intermediate
        self._product = HiddenStates(scratch / "product.f32", length, width, halves)

    def pass_group(self, group: int, weights: Mapping[Role, Tensor], gather: Gather) -> None:
        """Show every input of the group to `gather`."""
        decoder = self._decoder(weights)
        match group:
            case 0:
                self._to_attention(decoder, gather)
            case 1:
                self._mixed.write(self._mix(decoder, gather))
            case 2:
                self._middle.write(self._to_mlp(decoder, gather))
                self._mixed.remove()
                if not self._dense:
                    self._through_experts(decoder, gather)
            case _ if self._dense:
                self._product.write(self._multiply(decoder, gather))
            case _:
                self._through_experts(decoder, gather)

    def outputs(self, weights: Mapping[Role, Tensor]) -> Iterator[F32]:
        """The block's output for each sequence; what lay between is removed at the end."""
        decoder, layer = self._decoder(weights), self._layer
        products = self._product.read() if self._dense else None
        for x in self._middle.read():
            middle = torch.from_numpy(x)
            product = torch.from_numpy(next(products)) if products else None
            yield decoder.after_mlp(layer, middle, product).numpy()
        self._middle.remove()
        self._product.remove()

    def _decoder(self, weights: Mapping[Role, Tensor]) -> BlockDecoder:
        return BlockDecoder(self._spec, weights, halves=self._halves)

    def _to_attention(self, decoder: BlockDecoder, gather: Gather) -> None:
        for n, x in enumerate(self._inputs.read()):
            normed = decoder.normed_input(self._layer, torch.from_numpy(x), "attn_norm")
            gather(n, Role("q", self._layer), normed)

    def _mix(self, decoder: BlockDecoder, gather: Gather) -> Iterator[F32]:
        for n, x in enumerate(self._inputs.read()):
            mixed = decoder.mixed(self._layer, torch.from_numpy(x))
            gather(n, Role("o", self._layer), mixed)
            yield mixed.numpy()

    def _to_mlp(self, decoder: BlockDecoder, gather: Gather) -> Iterator[F32]:
        pairs = zip(self._inputs.read(), self._mixed.read(), strict=True)
        for n, (x, mixed) in enumerate(pairs):
            middle = decoder.after_attention(
                self._layer, torch.from_numpy(x), torch.from_numpy(mixed)
            )
            if self._dense:
                normed = decoder.normed_input(self._layer, middle, "mlp_norm")
                gather(n, Role("gate", self._layer), normed)
            yield middle.numpy()

    def _multiply(self, decoder: BlockDecoder, gather: Gather) -> Iterator[F32]:
        for n, x in enumerate(self._middle.read()):
            product = decoder.product(self._layer, torch.from_numpy(x))
            gather(n, Role("down", self._layer), product)
            yield product.numpy()

    def _through_experts(self, decoder: BlockDecoder, gather: Gather) -> None:
        """Each expert's inputs, as the router deals them out."""
        for n, x in enumerate(self._middle.read()):
            decoder.watcher = partial(gather, n)
            decoder.after_mlp(self._layer, torch.from_numpy(x), None)
