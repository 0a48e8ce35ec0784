"""Which tokens are scored in which context: the two protocols of the field, as data.

standard  windows of `context` tokens every `stride`; each token but the text's first is scored
          exactly once, in the first window that holds it. With stride = context the windows don't
          overlap, and a window's first token has no context, so it is not scored.
llama.cpp non-overlapping windows; only the second half is scored, and BOS (of models that use
          one) overwrites the first token of every window. An incomplete last window is dropped.

Perplexities of different protocols are different units: never compare them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from octavo.core.errors import UserError

Protocol = Literal["standard", "llama.cpp"]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens run from an empty context; predictions of tokens[first + 1 :] are scored.

    So the logits that count are those of positions first .. len(tokens) - 2.
    """

    tokens: I32
    first: int

    @property
    def scored(self) -> int:
        return len(self.tokens) - 1 - self.first


def split(
    tokens: Sequence[int],
    context: int,
    stride: int | None = None,
    bos: int | None = None,
    protocol: Protocol = "standard",
) -> tuple[Window, ...]:
    """Windows of a text's tokens, given without BOS. `bos`: the token that starts every window.

    Raises UserError when context, stride or the text's length leave nothing to score.
    """
    if context < 2 + (bos is not None):
        raise UserError(f"context {context} leaves nothing to score: give at least 3")
    row = np.asarray(tokens, np.int32)
    if protocol == "llama.cpp":
        windows = _second_halves(row, context, stride, bos)
    else:
        windows = _strided(row, context, stride, bos)
    if not windows:
        needed = context if protocol == "llama.cpp" else 2
        raise UserError(
            f"the text has {len(row)} tokens, and {needed} are needed: give a longer text"
        )
    return windows


def _second_halves(
    row: I32, context: int, stride: int | None, bos: int | None
) -> tuple[Window, ...]:
    if stride not in (None, context):
        raise UserError("the llama.cpp protocol has no stride: leave --stride out")
    if bos is not None:
        row = np.concatenate([np.asarray([bos], np.int32), row])
    chunks = [row[i : i + context].copy() for i in range(0, len(row) - context + 1, context)]
    for chunk in chunks:
        chunk[0] = chunk[0] if bos is None else bos
    return tuple(Window(chunk, context // 2) for chunk in chunks)


def _strided(row: I32, context: int, stride: int | None, bos: int | None) -> tuple[Window, ...]:
    lead = np.asarray([] if bos is None else [bos], np.int32)
    body = context - len(lead)
    step = body if stride is None else stride
    if not 1 <= step <= context:
        raise UserError(f"stride {step} is out of range: give 1 to the context, {context}")
    windows: list[Window] = []
    done = 0  # tokens of the text scored so far (or passed over: a window's first without BOS)
    for begin in range(0, len(row), min(step, body)):
        tokens = np.concatenate([lead, row[begin : begin + body]])
        first = max(0, done - begin + len(lead) - 1)
        done = min(begin + body, len(row))
        if first + 1 < len(tokens):
            windows.append(Window(tokens, first))
        if done == len(row):
            break
    return tuple(windows)
