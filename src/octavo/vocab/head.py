"""A head of fewer bits than the embedding: every token multiplies with all of the head, and reads
one row of the embedding. A head that was tied becomes a table of its own.

`gptq` minimizes E|(W - Q) h|^2 over the hidden states h that the head reads (arXiv 2210.17323,
eq. 1); its rows don't depend on each other, so they are encoded a part at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from octavo.compress.artifact import add_quality
from octavo.compress.quality import HeldOut, Quality, measure
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rtn import encode
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.new_directory import new_directory
from octavo.spec.decoder import Role
from octavo.spec.graph import head_role
from octavo.vocab.lowrank import second_moment
from octavo.vocab.states import head_states
from octavo.vocab.tables import stacked
from octavo.vocab.writing import Vocabulary, write_model

F32 = npt.NDArray[np.float32]
Method = Literal["rtn", "gptq"]

_ROWS = 1 << 14  # encoded at a time: GPTQ keeps some four copies of them in fp32


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """The head's format, and how its codes are chosen. gptq takes torch and a text."""

    format: str
    method: Method = "gptq"

    def __post_init__(self) -> None:
        if self.method not in ("rtn", "gptq"):
            raise ConfigError(f"the head's method is {self.method!r}: give rtn or gptq")


def head_model(
    path: Path,
    out: Path,
    plan: HeadPlan,
    tokens: Sequence[Sequence[int]] = (),
    held_out: Sequence[HeldOut] = (),
) -> Quality | None:
    """Write the model at `path` with a head in another format to the new directory `out`, fitted to
    `tokens` (texts, each with the model's begin token), and measure it on `held_out`.

    Raises UserError when `out` exists and for gptq without a text, UnsupportedError for a factored
    model, FormatError when the format doesn't fit a row.
    """
    with open_model(path) as model, new_directory(out) as directory:
        write_model(directory, model, reheaded(model, plan, tokens))
        if not held_out:
            return None
        quality = measure(directory, path, held_out)
        add_quality(directory, quality.to_dict())
        return quality


def reheaded(model: OpenModel, plan: HeadPlan, tokens: Sequence[Sequence[int]] = ()) -> Vocabulary:
    """The vocabulary of an open model with its head encoded anew."""
    if model.spec.embed_rank or model.spec.head_rank:
        raise UnsupportedError(f"{model.path}: its vocabulary is factored; start from its source")
    format = NumberFormat.parse(plan.format)
    head = model.source.tensor(head_role(model.spec)).float32()
    format.groups(head.shape)
    if plan.method == "gptq":
        table = _by_gptq(head, format, head_states(model, tokens))
    else:
        table = encode(head, format)
    recipe = {"method": "head", "format": plan.format, "by": plan.method}
    return Vocabulary(
        replace(model.spec, tied_head=False),
        {Role("head"): table},
        {"tie_word_embeddings": False},
        recipe,
    )


def _by_gptq(head: F32, format: NumberFormat, states: F32) -> QuantizedTensor:
    import torch

    from octavo.compress.base import LinearStats
    from octavo.compress.methods.gptq import Gptq

    moment = torch.from_numpy(2 * second_moment(states)).float()
    stats = LinearStats(tokens=len(states), hessian=moment)
    parts = (head[start : start + _ROWS] for start in range(0, len(head), _ROWS))
    return reduce(stacked, [Gptq().encode(torch.from_numpy(p), format, stats) for p in parts])
