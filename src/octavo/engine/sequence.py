"""A sequence on its way through the scheduler, and what a step does with it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.backends.base import StepResult
from octavo.engine.blocks import Copy, Lease
from octavo.engine.prefix import Chain
from octavo.engine.request import CacheUse, Request, TokenLogprobs

if TYPE_CHECKING:
    from octavo.engine.constraint import Constraint


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request. tokens are all known ones, the prompt's first."""

    request: Request
    choice: int
    age: tuple[int, int]  # order of arrival, then choice
    tokens: list[int]
    lease: Lease
    stops: frozenset[int]
    limit: int  # known tokens at which it ends
    unscored: int  # first prompt row whose log-probability was not delivered yet
    computed: int = 0
    slot: int = -1  # which of max_seqs places it runs in; -1: waiting
    unborn: list[int] = field(default_factory=list)  # choices that fork off before the last token
    constraint: Constraint | None = None  # its place in the request's grammar
    chain: Chain | None = None  # names of its blocks, where prefixes are cached
    published: int = 0  # blocks that have a name
    cached: int = 0  # prompt tokens that it found computed when it began
    explained: CacheUse | None = None  # to be reported with its first token
    pooled: npt.NDArray[np.float64] | None = None  # sum of states so far, of a pooled request

    n_prompt: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.request.prompt)

    @property
    def rank(self) -> tuple[int, int, int]:
        """Who comes first: priority (lower first), then order of arrival, then choice."""
        return (self.request.priority, *self.age)

    @property
    def n_output(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def may_run_ahead(self) -> bool:
        """Whether it only decodes, and its next tokens depend on nothing but those before them: no
        mask, no counts, no stop tokens that are held back until min_tokens."""
        params = self.request.params
        decodes = self.computed >= self.n_prompt - 1 and not self.unborn
        settled = self.n_output >= params.min_tokens and not params.penalized
        return decodes and settled and self.constraint is None and not self.request.pooled

    @property
    def lag(self) -> int:
        """Tokens to catch up. A parent stops short of the prompt's last token: each choice
        computes that one itself, and so samples its own first token."""
        return (self.n_prompt - 1 if self.unborn else len(self.tokens)) - self.computed


_NO_ROWS = range(0)


class Chunk(NamedTuple):
    """Rows start .. start + size of a sequence in one step."""

    sequence: Sequence
    start: int
    size: int
    samples: bool  # its last row gives a new token
    scored: range = _NO_ROWS  # positions whose next prompt token's log-probability is wanted


def chunk_of(sequence: Sequence, size: int) -> Chunk:
    start = sequence.computed
    stop = start + size
    last = min(stop, sequence.n_prompt - 1)
    first = sequence.unscored if sequence.unscored > start else start
    scored = range(first, last) if first < last else _NO_ROWS
    return Chunk(
        sequence, start, size, stop == len(sequence.tokens) and not sequence.request.pooled, scored
    )


@dataclass(slots=True)
class StepPlan:
    """What the next step runs. copies come before it, in order.

    times: tokens that each sequence gets; above 1 all chunks are decodes that may run ahead."""

    budget: int
    chunks: list[Chunk] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)  # began or began again
    preempted: int = 0
    times: int = 1

    def add(self, sequence: Sequence, count: int) -> None:
        self.chunks.append(chunk_of(sequence, count))
        self.budget -= count

    def serves(self, ids: Container[str]) -> bool:
        """Whether every chunk is of one of these requests."""
        return all(chunk.sequence.request.id in ids for chunk in self.chunks)

    def remove(self, sequence: Sequence) -> None:
        """Undo `add`, if it happened."""
        for chunk in self.chunks:
            if chunk.sequence is sequence:
                self.budget += chunk.size
        self.chunks = [c for c in self.chunks if c.sequence is not sequence]
        self.preempted += 1


def sampled_logprobs(
    sequence: Sequence, result: StepResult, entry: int
) -> tuple[TokenLogprobs, ...]:
    """Of the token that entry `entry` of the result sampled; empty when none were asked for."""
    count = sequence.request.params.logprobs
    if count is None:
        return ()
    return (_entry(result, entry, int(result.token[entry]), count),)


def prompt_scores(chunk: Chunk, result: StepResult, entry: int) -> tuple[TokenLogprobs, ...]:
    """Of the prompt tokens behind the chunk's scored rows, from entry `entry` on."""
    positions, sequence = chunk.scored, chunk.sequence
    count = sequence.request.params.logprobs or 0
    targets = sequence.request.prompt[positions.start + 1 : positions.stop + 1]
    sequence.unscored = positions.stop
    return tuple(_entry(result, entry + i, token, count) for i, token in enumerate(targets))


def _entry(result: StepResult, entry: int, token: int, count: int) -> TokenLogprobs:
    top = zip(
        result.top_token[entry, :count].tolist(),
        result.top_logprob[entry, :count].tolist(),
        strict=True,
    )
    return TokenLogprobs(token, float(result.logprob[entry]), tuple(top))
