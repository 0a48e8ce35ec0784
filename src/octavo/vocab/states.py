"""What a model's head reads and what it then thinks likely, on a text, from its own executor."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt

from octavo.backends.base import WANT_NORMED, RuntimeConfig
from octavo.core.errors import UserError
from octavo.evals.scorer import SingleSequence
from octavo.io.checkpoint import OpenModel
from octavo.vocab.measure import load_executor

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_STATES = 64  # whose logits are taken at a time: rows of a large vocabulary are megabytes each


def head_states(model: OpenModel, texts: Sequence[Sequence[int]], context: int = 512) -> F32:
    """Hidden states behind the final norm, float32 [n, hidden], of token lists that are each cut
    into windows of `context`. Raises UserError when there is nothing to run."""
    context = min(context, model.spec.max_positions)
    with closing(load_executor(model, RuntimeConfig(context=context, max_seqs=1))) as executor:
        sequence, rows = SingleSequence(executor), []
        for text in texts:
            for start in range(0, len(text), context):
                rows.append(_window(sequence, text[start : start + context], model.spec.hidden))
    if not rows:
        raise UserError("the text holds no tokens: give a longer one")
    return np.concatenate(rows)


def likely(table: F32, states: F32, softcap: float | None) -> F64:
    """Mean probability of every token over the states, float64 [vocab], from the whole table."""
    total = np.zeros(len(table))
    for start in range(0, len(states), _STATES):
        logits = states[start : start + _STATES] @ table.T
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        total += (logits / logits.sum(axis=1, keepdims=True)).sum(axis=0, dtype=np.float64)
    return total / len(states)


def _window(sequence: SingleSequence, tokens: Sequence[int], hidden: int) -> F32:
    sequence.restart()
    chunk = sequence.executor.config.max_tokens
    rows = np.empty((len(tokens), hidden), np.float32)
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        sequence.batch.hidden = rows[start : start + len(part)]
        sequence.step(part, WANT_NORMED)
    return rows
