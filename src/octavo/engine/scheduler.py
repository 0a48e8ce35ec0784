"""Which tokens run in the next step: no tensors, no clock, no I/O.

The one rule: a sequence has `computed` and known tokens, and a step lets `computed` catch up,
within a budget of tokens. That covers prefill (much to catch up), chunked prefill (the budget ends
first), decode (one token), and recomputation after a preemption. A sequence that has caught up gets
a new token. Order within a step (Sarathi-Serve, arXiv:2403.02310): decodes, then prefills that have
begun, then new sequences in order of arrival; so a decode never waits for a prefill.

When blocks run out, the youngest sequence that holds any goes back to waiting and will be computed
again: same tokens, since numbers do not depend on chunking. The oldest therefore always advances.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.backends.base import StepResult
from octavo.core.errors import InternalError, OctavoError, RequestError
from octavo.engine.blocks import Copy, KvPool, Lease
from octavo.engine.request import FinishReason, Output, Request, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Limits:
    """max_tokens: rows of a step; max_seqs: sequences of a step; context: tokens of a sequence."""

    max_tokens: int
    max_seqs: int
    context: int

    def __post_init__(self) -> None:
        if min(self.max_tokens, self.max_seqs) < 1 or self.context < 2:
            raise InternalError(f"limits must allow one sequence of two tokens: {self}")


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

    n_prompt: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.request.prompt)

    @property
    def n_output(self) -> int:
        return len(self.tokens) - self.n_prompt

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


def _chunk(sequence: Sequence, size: int) -> Chunk:
    start = sequence.computed
    stop = start + size
    last = min(stop, sequence.n_prompt - 1)
    first = sequence.unscored if sequence.unscored > start else start
    scored = range(first, last) if first < last else _NO_ROWS
    return Chunk(sequence, start, size, stop == len(sequence.tokens), scored)


@dataclass(slots=True)
class StepPlan:
    """What the next step runs. copies come before it, in order."""

    budget: int
    chunks: list[Chunk] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)  # began or began again
    preempted: int = 0

    def add(self, sequence: Sequence, count: int) -> None:
        self.chunks.append(_chunk(sequence, count))
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


def _age(sequence: Sequence) -> tuple[int, int]:
    return sequence.age


class Scheduler:
    """First come, first served. Call `schedule`, run the plan, `commit` its result; repeat."""

    def __init__(self, pool: KvPool, limits: Limits, vocab: int) -> None:
        self.pool, self.limits, self._vocab = pool, limits, vocab
        self._slots = list(range(limits.max_seqs - 1, -1, -1))
        self._waiting: list[Sequence] = []  # by age
        self._running: list[Sequence] = []  # by age
        self._live: dict[str, list[Sequence]] = {}
        self._arrivals = 0

    def has_work(self) -> bool:
        return bool(self._live)

    def validate(self, request: Request) -> None:
        """Raises RequestError when the request can't be served by this model and memory."""
        size, context = len(request.prompt), self.limits.context
        if size >= context:
            raise RequestError(
                f"the prompt has {size} tokens and the context holds {context}, the answer"
                f" included; shorten the prompt or load with a larger context",
                param="prompt",
                code="context_length_exceeded",
            )
        longest = min(size + request.params.max_tokens, context)
        if not self.pool.fits(longest, self.limits.max_tokens):
            raise RequestError(
                f"{size} prompt tokens and {request.params.max_tokens} new ones do not fit into"
                f" the KV cache; ask for fewer or load with more kv_tokens",
                param="max_tokens",
            )
        self._check_tokens(request)

    def _check_tokens(self, request: Request) -> None:
        params = request.params
        _check_vocabulary("prompt", request.prompt, self._vocab)
        _check_vocabulary("stop_token_ids", params.stop_token_ids, self._vocab)
        _check_vocabulary("logit_bias", tuple(t for t, _ in params.logit_bias), self._vocab)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises RequestError as `validate` does, or for an id in use."""
        self.validate(request)
        if request.id in self._live:
            raise RequestError(f"request id {request.id!r} is in use", param="id")
        params, size = request.params, len(request.prompt)
        sequence = Sequence(
            request=request,
            choice=0,
            age=(self._arrivals, 0),
            tokens=list(request.prompt),
            lease=self.pool.lease(),
            stops=request.stops,
            limit=min(size + params.max_tokens, self.limits.context),
            unscored=0 if params.prompt_logprobs else size - 1,
            unborn=list(range(1, params.n)),
        )
        self._arrivals += 1
        self._live[request.id] = [sequence]
        self._waiting.append(sequence)
        self._fork_when_due(sequence)

    def schedule(self, prefill: int | None = None) -> StepPlan:
        """The next step, of at most `prefill` rows (at least 1) besides the decodes. Its chunks are
        empty only when nothing is left, or after preemptions."""
        decodes: list[Sequence] = []
        behind: list[Sequence] = []
        for sequence in self._running:
            (behind if sequence.lag > 1 else decodes).append(sequence)
        most = self.limits.max_tokens
        # Decodes come on top, so that none waits and what has begun always gets a row.
        plan = StepPlan(most if prefill is None else min(most, len(decodes) + prefill))
        for sequence in decodes:
            self._advance(sequence, 1, plan)
        for sequence in behind:
            self._advance(sequence, min(sequence.lag, plan.budget), plan)
        if not plan.preempted:  # what was freed at a price is not given to newcomers
            self._admit(plan)
        for chunk in plan.chunks:
            if chunk.sequence.lease.copies_due:
                plan.copies += chunk.sequence.lease.take_copies()
        return plan

    def _advance(self, sequence: Sequence, count: int, plan: StepPlan) -> None:
        while sequence.slot >= 0 and count > 0:
            if sequence.lease.extend(count):
                plan.add(sequence, count)
                return
            self._preempt(max(self._holders(), key=_age), plan)

    def _holders(self) -> Iterator[Sequence]:
        yield from self._running
        yield from (s for s in self._waiting if s.lease.n_tokens)

    def _preempt(self, sequence: Sequence, plan: StepPlan) -> None:
        plan.remove(sequence)
        sequence.lease.truncate(0)
        sequence.computed = 0
        if sequence.slot >= 0:
            self._leave(sequence)
            insort(self._waiting, sequence, key=_age)

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._slots.append(sequence.slot)
        sequence.slot = -1

    def _admit(self, plan: StepPlan) -> None:
        # Only into what the budget has left: so there are never more running than the budget has
        # tokens, each advances in every step, and decodes can't starve a prefill.
        while self._waiting and self._slots and plan.budget:
            sequence = self._waiting[0]
            count = min(sequence.lag, plan.budget)
            if not sequence.lease.extend(count) and not self._reclaim(sequence, count, plan):
                return
            self._waiting.pop(0)
            sequence.slot = self._slots.pop()
            insort(self._running, sequence, key=_age)
            plan.add(sequence, count)
            plan.admitted.append(sequence)

    def _reclaim(self, sequence: Sequence, count: int, plan: StepPlan) -> bool:
        """With nothing running, blocks can only be held by younger forks that wait."""
        if self._running:
            return False
        for younger in reversed(self._waiting[1:]):
            if younger.lease.n_tokens:
                self._preempt(younger, plan)
                if sequence.lease.extend(count):
                    return True
        raise InternalError(f"request {sequence.request.id!r} does not fit into empty pools")

    def commit(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Take in what the step brought. Finished sequences give back their blocks."""
        tokens = result.token[: result.n].tolist()
        outputs: list[Output] = []
        entry = 0
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.size
            scores = _scores(chunk, result, entry) if chunk.scored else ()
            entry += len(scores)
            if chunk.samples:
                logprobs = _logprobs(sequence, result, entry)
                outputs.append(self._append(sequence, tokens[entry], logprobs, scores))
                entry += 1
                continue
            if scores:
                outputs.append(
                    Output(sequence.request.id, sequence.choice, (), prompt_logprobs=scores)
                )
            self._fork_when_due(sequence)
        if entry != result.n:
            raise InternalError(f"the step gave {result.n} entries where {entry} were wanted")
        return outputs

    def _append(
        self,
        sequence: Sequence,
        token: int,
        logprobs: tuple[TokenLogprobs, ...],
        scores: tuple[TokenLogprobs, ...],
    ) -> Output:
        sequence.tokens.append(token)
        finish: FinishReason | None = None
        if token in sequence.stops:
            finish = "stop"
        elif len(sequence.tokens) >= sequence.limit:
            finish = "length"
        if finish is not None:
            self._retire(sequence)
        return Output(
            sequence.request.id,
            sequence.choice,
            (token,),
            logprobs,
            scores,
            finish,
            token if finish == "stop" else None,
        )

    def _fork_when_due(self, parent: Sequence) -> None:
        """Once all of the prompt but its last token is computed, the other choices fork off."""
        if not parent.unborn or parent.computed < parent.n_prompt - 1:
            return
        for choice in parent.unborn:
            child = Sequence(
                request=parent.request,
                choice=choice,
                age=(parent.age[0], choice),
                tokens=list(parent.request.prompt),
                lease=parent.lease.fork(),
                stops=parent.stops,
                limit=parent.limit,
                unscored=parent.n_prompt - 1,
                computed=parent.computed,
            )
            self._live[parent.request.id].append(child)
            insort(self._waiting, child, key=_age)
        parent.unborn = []

    def _retire(self, sequence: Sequence) -> None:
        sequence.lease.release()
        if sequence.slot >= 0:
            self._leave(sequence)
        else:
            self._waiting.remove(sequence)
        siblings = self._live[sequence.request.id]
        siblings.remove(sequence)
        if not siblings:
            del self._live[sequence.request.id]

    def abort(
        self, request_id: str, choice: int | None = None, error: OctavoError | None = None
    ) -> list[Output]:
        """End a request, or one choice of it, now; nothing for an id that isn't live. With
        `error` it ends as failed. Not between `schedule` and `commit`, except for all of a plan."""
        finish: FinishReason = "abort" if error is None else "error"
        outputs: list[Output] = []
        for sequence in list(self._live.get(request_id, ())):
            for number in [sequence.choice, *sequence.unborn]:
                if choice in (None, number):
                    self._drop_choice(sequence, number)
                    outputs.append(Output(request_id, number, (), finish=finish, error=error))
        return outputs

    def _drop_choice(self, sequence: Sequence, number: int) -> None:
        if number in sequence.unborn:
            sequence.unborn.remove(number)
        elif sequence.unborn:  # the parent goes on in the name of its next choice
            sequence.choice = sequence.unborn.pop(0)
        else:
            self._retire(sequence)

    def undo(self, plan: StepPlan) -> None:
        """The step was cancelled: its rows count as not computed, and come again. Blocks that only
        they needed are given back; copies that the plan asked for have been made, and stay."""
        for chunk in plan.chunks:
            chunk.sequence.lease.truncate(chunk.sequence.computed)

    def fail(self, plan: StepPlan, error: OctavoError) -> list[Output]:
        """The step failed: every request in it ends with the error. Others are not disturbed."""
        ids = dict.fromkeys(chunk.sequence.request.id for chunk in plan.chunks)
        return [output for id_ in ids for output in self.abort(id_, error=error)]

    def check(self) -> None:
        """Invariants of the queues and of the pools. Raises InternalError."""
        self.pool.check()
        everyone = self._waiting + self._running
        if sorted(map(id, everyone)) != sorted(id(s) for g in self._live.values() for s in g):
            raise InternalError("the queues and the live requests differ")
        for queue in (self._waiting, self._running):
            if queue != sorted(queue, key=_age):
                raise InternalError("a queue is out of order")
        slots = self._slots + [s.slot for s in self._running]
        if sorted(slots) != list(range(self.limits.max_seqs)):
            raise InternalError(f"slots lost or doubled: {slots}")
        for sequence in everyone:
            if sequence.computed != sequence.lease.n_tokens:
                raise InternalError(f"request {sequence.request.id!r}: lease and computed differ")


def _check_vocabulary(param: str, tokens: tuple[int, ...], vocab: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab:
            raise RequestError(
                f"{param} holds token {token}; the vocabulary has {vocab} tokens: give ids below "
                "that, or the tokenizer that belongs to the model",
                param=param,
            )


def _logprobs(sequence: Sequence, result: StepResult, entry: int) -> tuple[TokenLogprobs, ...]:
    count = sequence.request.params.logprobs
    if count is None:
        return ()
    return (_entry(result, entry, int(result.token[entry]), count),)


def _scores(chunk: Chunk, result: StepResult, entry: int) -> tuple[TokenLogprobs, ...]:
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
