"""The proof that a prepared model is the model it was: some tokens through both, block by block."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.backends.reference.options import Precision
from octavo.compress.block import BlockDecoder, load_block
from octavo.compress.plan import Plan
from octavo.core.errors import NumericsError
from octavo.formats.layouts import stored_bits
from octavo.formats.number_format import NumberFormat
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import role_shape

_TOKENS = 32  # drawn evenly from the vocabulary


def check_same(before: WeightSource, after: WeightSource, plan: Plan) -> tuple[str, ...]:
    """What a reader should know of the preparations, their proof first.

    Logits of the prepared weights, computed in fp64, may differ from the source's by 16 times what
    fp32 loses on the source: each weight was rounded to fp32 once more. Raises NumericsError beyond
    that.
    """
    spec = plan.preparations[0][1]
    exact = _logits(before, spec, "fp64")
    noise = float((_logits(before, spec, "fp32") - exact).abs().max())
    gap = float((_logits(after, plan.spec, "fp64") - exact).abs().max())
    if not gap <= 16 * noise:
        raise NumericsError(
            f"the prepared model computes something else: logits move by {gap:.3g}, and fp32 "
            f"explains {16 * noise:.3g}; leave the preparation out"
        )
    proof = f"prepared: logits of {_TOKENS} tokens move by {gap:.3g}, fp32 itself by {noise:.3g}"
    untied = spec.tied_head and not plan.spec.tied_head
    return (proof, _cost(plan)) if untied else (proof,)


def _cost(plan: Plan) -> str:
    """What a head of its own weighs."""
    head = Role("head")
    rows, width = role_shape(plan.spec, head)
    step = plan.steps.get(head)
    format = step.target if step else NumberFormat.parse("fp32")
    size = rows * width * stored_bits(format, (rows, width)) / 8e6
    return f"prepared: the head was tied to the embedding; its own matrix adds {size:.1f} MB"


def _logits(source: WeightSource, spec: DecoderSpec, dtype: Precision) -> Tensor:
    """fp64 [tokens, vocab]; one block in memory."""
    kind = torch.float64 if dtype == "fp64" else torch.float32
    ids = np.random.default_rng(0).integers(0, spec.vocab, _TOKENS)
    outside = {role: w.to(kind) for role, w in load_block(source, spec, None).items()}
    with torch.no_grad():
        x = BlockDecoder(spec, outside, dtype).embed(ids)
        for layer in range(len(spec.layers)):
            block = {role: w.to(kind) for role, w in load_block(source, spec, layer).items()}
            x = BlockDecoder(spec, block, dtype).run_layer(layer, x)
        return BlockDecoder(spec, outside, dtype).head(x).double()
