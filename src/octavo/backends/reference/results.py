"""From logits to a StepResult: greedy tokens, log-probabilities, raw logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from octavo.backends.base import (
    MAX_LOGPROBS,
    WANT_HIDDEN,
    WANT_LOGITS,
    WANT_LOGPROBS,
    WANT_NORMED,
    WANT_TARGET,
    WANT_TOKEN,
    StepBatch,
    StepResult,
    allowed_tokens,
)
from octavo.core.errors import InternalError, UnsupportedError

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


def check_greedy(batch: StepBatch) -> None:
    """UnsupportedError when a sequence asks for more than greedy tokens of the base model."""
    live = slice(0, batch.n_seqs)
    asked = (
        ("temperature above 0", batch.temperature[live] > 0),
        ("repetition_penalty", batch.repetition_penalty[live] != 1),
        ("presence_penalty", batch.presence_penalty[live] != 0),
        ("frequency_penalty", batch.frequency_penalty[live] != 0),
        ("logit_bias", np.diff(batch.bias_start[: batch.n_seqs + 1]) > 0),
        ("an adapter", batch.adapter[live] >= 0),
    )
    for name, sequences in asked:
        if sequences.any():
            raise UnsupportedError(
                f"the reference backend only decodes greedily, without {name}; "
                "use the native backend for it"
            )


def fill(batch: StepBatch, rows: I32, logits: F32, hidden: F32) -> StepResult:
    """Results of the wanting `rows`; logits [rows, vocab] and hidden [rows, hidden] are theirs."""
    want = batch.want[rows]
    _store(batch.logits, logits, (want & WANT_LOGITS) != 0, "logits")
    _store(batch.hidden, hidden, (want & (WANT_HIDDEN | WANT_NORMED)) != 0, "hidden")
    sequence = np.searchsorted(batch.row_start[1 : batch.n_seqs + 1], rows, side="right")
    greedy = logits.argmax(axis=-1).astype(np.int32)  # the lowest id wins a tie
    token = np.where(want & WANT_TOKEN, greedy, -1).astype(np.int32)
    for i in np.flatnonzero(want & WANT_TOKEN).tolist():
        allowed = allowed_tokens(batch, int(sequence[i]), logits.shape[-1])
        if allowed is not None:
            token[i] = np.where(allowed, logits[i], -np.inf).argmax()
    result = StepResult(len(rows), rows, token, *_empty(len(rows)))
    for i in np.flatnonzero(want & (WANT_LOGPROBS | WANT_TARGET)).tolist():
        scored = batch.target[rows[i]] if want[i] & WANT_TARGET else token[i]
        _score(result, i, _log_softmax(logits[i]), int(scored))
        if want[i] & WANT_LOGPROBS:
            _rank(result, i, logits[i], int(batch.n_logprobs[sequence[i]]))
    return result


def _empty(n: int) -> tuple[F32, I32, F32]:
    shape = (n, MAX_LOGPROBS)
    return (
        np.full(n, np.nan, np.float32),
        np.full(shape, -1, np.int32),
        np.full(shape, -np.inf, np.float32),
    )


def _store(buffer: F32 | None, values: F32, wanted: npt.NDArray[np.bool_], name: str) -> None:
    count = int(wanted.sum())
    if not count:
        return
    if buffer is None or len(buffer) < count:
        raise InternalError(f"a step wants {name} of {count} rows, its buffer holds fewer")
    buffer[:count] = values[wanted]


def _score(result: StepResult, i: int, logprobs: F32, token: int) -> None:
    if token >= 0:
        result.logprob[i] = logprobs[token]


def _rank(result: StepResult, i: int, logits: F32, count: int) -> None:
    best = np.argsort(-logits, kind="stable")[:count]
    result.top_token[i, : len(best)] = best
    result.top_logprob[i, : len(best)] = _log_softmax(logits)[best]


def _log_softmax(logits: F32) -> F32:
    exact = logits.astype(np.float64)
    exact -= exact.max()
    return np.asarray(exact - np.log(np.exp(exact).sum()), np.float32)
