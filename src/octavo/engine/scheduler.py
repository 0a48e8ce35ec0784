"""Which tokens run in the next step: no tensors, no clock, no I/O.

The one rule: a sequence has `computed` and known tokens, and a step lets `computed` catch up,
within a budget of tokens. That covers prefill (much to catch up), chunked prefill (the budget ends
first), decode (one token), recomputation after a preemption, and a cached prefix (`computed` begins
behind it). A sequence that has caught up gets a new token. Order within a step (Sarathi-Serve,
arXiv:2403.02310): decodes, then prefills that have begun, then new sequences in the order of
`queue.WaitingQueue`; so a decode never waits for a prefill.

When blocks run out, the last in rank (lowest priority, then youngest) of those that hold any goes
back to waiting and will be computed again: same tokens, since numbers do not depend on chunking.
The first in rank therefore always advances.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.backends.base import StepResult
from octavo.core.errors import InternalError, OctavoError, RequestError
from octavo.engine.blocks import KvPool
from octavo.engine.prefix import PrefixCache
from octavo.engine.queue import WaitingQueue, rank
from octavo.engine.request import FinishReason, Output, Request, TokenLogprobs
from octavo.engine.reuse import Reuse
from octavo.engine.sequence import (
    Sequence,
    StepPlan,
    prompt_scores,
    sampled_logprobs,
)

if TYPE_CHECKING:
    from octavo.engine.constraint import Constraint


@dataclass(frozen=True, slots=True)
class Limits:
    """max_tokens: rows of a step; max_seqs: sequences of a step; context: tokens of a sequence;
    max_waiting: requests that may wait for their first step, 0 for any number."""

    max_tokens: int
    max_seqs: int
    context: int
    max_waiting: int = 0

    def __post_init__(self) -> None:
        if min(self.max_tokens, self.max_seqs, self.max_waiting + 1) < 1 or self.context < 2:
            raise InternalError(f"limits must allow one sequence of two tokens: {self}")


class Scheduler:
    """Call `schedule`, run the plan, `commit` its result; repeat. `cache`: over the same pool.
    `constrain`: a new sequence's place in a grammar."""

    def __init__(
        self,
        pool: KvPool,
        limits: Limits,
        vocab: int,
        cache: PrefixCache | None = None,
        constrain: Callable[[str], Constraint | None] = lambda _: None,
    ) -> None:
        self._constrain = constrain
        self.pool, self.limits, self._vocab = pool, limits, vocab
        self.reuse = None if cache is None else Reuse(cache)
        self._slots = list(range(limits.max_seqs - 1, -1, -1))
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []  # by rank
        self._live: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self.preemptions = 0

    def has_work(self) -> bool:
        return bool(self._live)

    @property
    def running(self) -> int:
        """Sequences that have a place in the next step."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that have none yet, or had to give it up."""
        return len(self._waiting)

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

    def check_new(self, request: Request) -> None:
        """Raises RequestError as `validate` does, or for an id in use."""
        self.validate(request)
        if request.id in self._live:
            raise RequestError(f"request id {request.id!r} is in use", param="id")

    def submit(self, request: Request) -> None:
        """Queue a request. Raises as `check_new` does."""
        self.check_new(request)
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
            constraint=self._constrain(request.grammar),
        )
        if self.reuse is not None:
            self.reuse.prepare(sequence)
        self._arrivals += 1
        self._live[request.id] = [sequence]
        self._waiting.begin(request.tenant)
        self._waiting.add(sequence)
        self._fork_when_due(sequence)

    def schedule(self, prefill: int | None = None, ahead: int = 1) -> StepPlan:
        """The next step, of at most `prefill` rows (at least 1) besides the decodes; of up to
        `ahead` tokens a sequence where there are only decodes, all may run ahead and none waits.
        Its chunks are empty only when nothing is left, or after preemptions."""
        decodes: list[Sequence] = []
        behind: list[Sequence] = []
        for sequence in self._running:
            (behind if sequence.lag > 1 else decodes).append(sequence)
        most = self.limits.max_tokens
        # Decodes come on top, so that none waits and what has begun always gets a row.
        plan = StepPlan(most if prefill is None else min(most, len(decodes) + prefill))
        if not behind:
            plan.times = self._reserve(decodes, ahead)
        for sequence in decodes:
            if plan.times > 1:
                plan.add(sequence, 1)
            else:
                self._advance(sequence, 1, plan)
        for sequence in behind:
            self._advance(sequence, min(sequence.lag, plan.budget), plan)
        if not plan.preempted:  # what was freed at a price is not given to newcomers
            self._admit(plan)
        for chunk in plan.chunks:
            if chunk.sequence.lease.copies_due:
                plan.copies += chunk.sequence.lease.take_copies()
        return plan

    def _reserve(self, decodes: list[Sequence], ahead: int) -> int:
        """Blocks for some tokens of every sequence, `ahead` at most; how many tokens. 1: nothing
        was reserved."""
        if ahead < 2 or not decodes or self._waiting:
            return 1
        if not all(sequence.may_run_ahead for sequence in decodes):
            return 1
        room = min(sequence.limit - len(sequence.tokens) for sequence in decodes)
        times = min(ahead, room, self.limits.max_tokens // len(decodes))
        if times < 2:
            return 1
        for count, sequence in enumerate(decodes):
            if not sequence.lease.extend(times):
                for other in decodes[:count]:
                    other.lease.truncate(other.computed)
                return 1
        return times

    def _advance(self, sequence: Sequence, count: int, plan: StepPlan) -> None:
        while sequence.slot >= 0 and count > 0:
            if sequence.lease.extend(count):
                plan.add(sequence, count)
                return
            holders = list(self._holders())
            if len(holders) == 1 and self.reuse is not None and self.reuse.give_up_a_pin():
                continue  # alone, it would come back to the same pins again and again
            self._preempt(max(holders, key=rank), plan)

    def _holders(self) -> Iterator[Sequence]:
        yield from self._running
        yield from (s for s in self._waiting if s.lease.n_tokens)

    def _preempt(self, sequence: Sequence, plan: StepPlan) -> None:
        plan.remove(sequence)
        self.preemptions += 1
        sequence.lease.truncate(0)
        sequence.computed = 0
        sequence.published = 0
        if sequence.slot >= 0:
            self._leave(sequence)
            self._waiting.add(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._slots.append(sequence.slot)
        sequence.slot = -1

    def _admit(self, plan: StepPlan) -> None:
        # Only into what the budget has left: so there are never more running than the budget has
        # tokens, each advances in every step, and decodes can't starve a prefill.
        while plan.budget and (sequence := self._waiting.first()) is not None:
            if not self._slots and not self._displace(sequence, plan):
                return
            count = self._begin(sequence, plan)
            if not count:
                return
            self._waiting.remove(sequence)
            sequence.slot = self._slots.pop()
            insort(self._running, sequence, key=rank)
            plan.add(sequence, count)
            plan.admitted.append(sequence)

    def _displace(self, sequence: Sequence, plan: StepPlan) -> bool:
        """Make a place for one of higher priority."""
        last = self._running[-1]
        if last.request.priority <= sequence.request.priority:
            return False
        self._preempt(last, plan)
        return True

    def _begin(self, sequence: Sequence, plan: StepPlan) -> int:
        """Give a waiting sequence blocks for its first rows; how many rows, 0 if there are none."""
        found = self.reuse is not None and self.reuse.find(sequence)
        if found:
            self._fork_when_due(sequence)
        count = min(sequence.lag, plan.budget)
        if sequence.lease.extend(count) or self._reclaim(sequence, count, plan):
            return count
        if found:  # it holds what it found only once it runs
            sequence.lease.truncate(0)
            sequence.computed = 0
        return 0

    def _reclaim(self, sequence: Sequence, count: int, plan: StepPlan) -> bool:
        """With nothing running, blocks can only be held by forks that wait, or by pins."""
        if self._running:
            return False
        for other in sorted(self._waiting, key=rank, reverse=True):
            if other is not sequence and other.lease.n_tokens:
                self._preempt(other, plan)
                if sequence.lease.extend(count):
                    return True
        while self.reuse is not None and self.reuse.give_up_a_pin():
            if sequence.lease.extend(count):
                return True
        raise InternalError(f"request {sequence.request.id!r} does not fit into empty pools")

    def commit(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Take in what the step brought. Finished sequences give back their blocks."""
        if plan.times > 1:
            return self._commit_times(plan, result)
        tokens = result.token[: result.n].tolist()
        outputs: list[Output] = []
        entry = 0
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.size
            self._waiting.charge(sequence.request.tenant, chunk.size, chunk.samples)
            if self.reuse is not None:
                self.reuse.publish(sequence)
            if sequence.request.pooled:
                entry += chunk.size
                outputs += self._pool(sequence)
                continue
            scores = prompt_scores(chunk, result, entry) if chunk.scored else ()
            entry += len(scores)
            if chunk.samples:
                logprobs = sampled_logprobs(sequence, result, entry)
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

    def _commit_times(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """The same for a plan that ran ahead. What came behind a sequence's end never was."""
        if result.n != plan.times * len(plan.chunks):
            raise InternalError(f"{result.n} entries of {len(plan.chunks)} x {plan.times} tokens")
        tokens = result.token[: result.n].tolist()
        ended: set[Sequence] = set()
        outputs: list[Output] = []
        for entry, token in enumerate(tokens):
            sequence = plan.chunks[entry % len(plan.chunks)].sequence
            if sequence in ended:
                continue
            sequence.computed += 1
            self._waiting.charge(sequence.request.tenant, 1, True)
            if self.reuse is not None:
                self.reuse.publish(sequence)
            output = self._append(sequence, token, sampled_logprobs(sequence, result, entry), ())
            outputs.append(output)
            if output.finish is not None:
                ended.add(sequence)
        return outputs

    def _append(
        self,
        sequence: Sequence,
        token: int,
        logprobs: tuple[TokenLogprobs, ...],
        scores: tuple[TokenLogprobs, ...],
    ) -> Output:
        sequence.tokens.append(token)
        cache, sequence.explained = sequence.explained, None
        finish, error = _finish(sequence, token)
        if finish is not None:
            self._retire(sequence)
        return Output(
            sequence.request.id,
            sequence.choice,
            (token,),
            logprobs,
            scores,
            finish,
            token if finish == "stop" and token in sequence.stops else None,
            error,
            cache=cache,
        )

    def _pool(self, sequence: Sequence) -> list[Output]:
        """The mean of the prompt's states, once all have been added."""
        if sequence.computed < sequence.n_prompt or sequence.pooled is None:
            return []
        self._retire(sequence)
        mean = (sequence.pooled / sequence.n_prompt).tobytes()
        return [Output(sequence.request.id, 0, (), finish="stop", pooled=mean)]

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
                constraint=None if parent.constraint is None else parent.constraint.fork(),
            )
            if self.reuse is not None:
                self.reuse.inherit(child, parent)
            self._live[parent.request.id].append(child)
            self._waiting.begin(child.request.tenant)
            self._waiting.add(child)
        parent.unborn = []

    def _retire(self, sequence: Sequence) -> None:
        sequence.lease.release()
        if sequence.slot >= 0:
            self._leave(sequence)
        else:
            self._waiting.remove(sequence)
        self._waiting.end(sequence.request.tenant)
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
        if self.reuse is not None:
            self.reuse.cache.check()
        everyone = [*self._waiting, *self._running]
        if sorted(map(id, everyone)) != sorted(id(s) for g in self._live.values() for s in g):
            raise InternalError("the queues and the live requests differ")
        if self._running != sorted(self._running, key=rank):
            raise InternalError("those that run are out of order")
        slots = self._slots + [s.slot for s in self._running]
        if sorted(slots) != list(range(self.limits.max_seqs)):
            raise InternalError(f"slots lost or doubled: {slots}")
        for sequence in everyone:
            if sequence.computed != sequence.lease.n_tokens:
                raise InternalError(f"request {sequence.request.id!r}: lease and computed differ")


def _finish(sequence: Sequence, token: int) -> tuple[FinishReason | None, OctavoError | None]:
    """Whether the new token ends the sequence, and how."""
    constraint = sequence.constraint
    complete = constraint is not None and constraint.accept(token)
    if constraint is not None and constraint.failure:
        return "error", constraint.error()
    if complete or token in sequence.stops:
        return "stop", None
    return ("length" if len(sequence.tokens) >= sequence.limit else None), None


def _check_vocabulary(param: str, tokens: tuple[int, ...], vocab: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab:
            raise RequestError(
                f"{param} holds token {token}; the vocabulary has {vocab} tokens: give ids below "
                "that, or the tokenizer that belongs to the model",
                param=param,
            )
