"""Embeddings: the mean over all tokens of a text of the hidden states behind the final norm.

The head reads the same states for a next token. Rows are added one after the other in float64, so
that a vector has the same bits for any chunking and any batch; the mean is scaled to length 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo.backends.base import F32
from octavo.core.errors import InternalError
from octavo.engine.request import CachePolicy, Request, SamplingParams
from octavo.engine.sequence import StepPlan

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient

POOLING = "mean over all tokens of the hidden states behind the final norm, scaled to length 1"
F64 = npt.NDArray[np.float64]


def pooled_request(id_: str, prompt: tuple[int, ...]) -> Request:
    """A request for the mean state of a prompt, every row of which must run."""
    once = SamplingParams(max_tokens=1, ignore_eos=True)
    return Request(id_, prompt, once, cache=CachePolicy(read=False, write="none"), pooled=True)


def add_states(plan: StepPlan, hidden: F32 | None) -> None:
    """Add a step's rows, float32 [rows, hidden] in their order, to the sums of its sequences."""
    row = 0
    for chunk in plan.chunks:
        sequence = chunk.sequence
        if not sequence.request.pooled:
            continue
        if hidden is None:
            raise InternalError("a step whose states are wanted has no room for them")
        if chunk.start == 0 or sequence.pooled is None:
            sequence.pooled = np.zeros(hidden.shape[1], np.float64)
        for state in hidden[row : row + chunk.size]:
            sequence.pooled += state
        row += chunk.size


def unit(mean: bytes) -> F32:
    """The vector of length 1 of a mean as it travels; of a zero mean, zero."""
    values: F64 = np.frombuffer(mean, np.float64)
    length = math.sqrt(math.fsum((values * values).tolist()))
    return np.asarray(values / length if length else values, np.float32)


def embed(client: EngineClient, requests: Sequence[Request]) -> list[F32]:
    """The vectors of pooled requests, in order."""
    found: dict[str, F32] = {}
    with client.submit(requests) as stream:
        for output in stream:
            if output.error is not None:
                raise output.error
            found[output.request_id] = unit(output.pooled)
    return [found[request.id] for request in requests]
