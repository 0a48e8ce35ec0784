"""The engine: one scheduler, one executor, and a step that joins them."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Container

from octavo.backends.base import Executor, RunsAhead, StepCancelled, StepResult
from octavo.core.errors import OctavoError, OverloadedError, RequestError
from octavo.engine.ahead import Ahead
from octavo.engine.blocks import KvPool
from octavo.engine.constraint import Grammars, MaskFiller, Vocabulary
from octavo.engine.deadlines import Deadlines
from octavo.engine.fill import Filler, check_bias, max_blocks
from octavo.engine.pace import Pace
from octavo.engine.pool import add_states
from octavo.engine.prefix import PrefixCache
from octavo.engine.prefixes import PIN_SHARE, Prefixes
from octavo.engine.request import Output, Request
from octavo.engine.scheduler import Limits, Scheduler
from octavo.engine.sequence import StepPlan
from octavo.engine.shelf import Shelf
from octavo.engine.stats import EngineStats, LastStep, read_stats
from octavo.engine.store import PrefixStore
from octavo.engine.waits import StoreWaits


class Engine:
    """Submit requests, then step while there is work. Single-threaded: clients add threads.

    With `prefix_cache`, blocks keep their content for later requests that begin alike; `store`
    keeps what is pinned on disk; `pin_share` is what all pins may hold of each pool.

    `validate` reads only what never changes, and may be called from any thread; `cancel` too.
    `vocabulary` is read when the first request with a grammar comes; without it none is served.
    `pace` chooses how many rows a step may have, from what `clock` (seconds) says steps took.
    """

    def __init__(
        self,
        executor: Executor,
        limits: Limits | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
        prefix_cache: bool = True,
        vocabulary: Callable[[], Vocabulary] | None = None,
        store: PrefixStore | None = None,
        pin_share: float = PIN_SHARE,
    ) -> None:
        config, layout = executor.config, executor.layout
        self.limits = limits or Limits(config.max_tokens, config.max_seqs, config.context)
        blocks = max_blocks(self.limits.context, layout.block_size)
        pool = KvPool(layout, executor.kv_blocks, blocks, caching=prefix_cache)
        self.executor = executor
        # Once: asking what a protocol of this kind is takes 20 us.
        self._several = executor if isinstance(executor, RunsAhead) else None
        shelf = None if store is None else Shelf(store, executor, self.wake)
        self.prefixes = (
            Prefixes(PrefixCache(pool), clock, pin_share, shelf) if prefix_cache else None
        )
        self._waits = StoreWaits(self.prefixes, shelf)
        cache = None if self.prefixes is None else self.prefixes.cache
        self._grammars = Grammars(vocabulary, executor.spec.vocab)
        self._masks = MaskFiller()
        self.scheduler = Scheduler(
            pool, self.limits, executor.spec.vocab, cache, self._grammars.constraint
        )
        self._deadlines = Deadlines(clock)
        self.pace = pace or Pace(self.limits.max_tokens)
        self.ahead = Ahead()
        self._clock = clock
        self._filler = Filler(executor, blocks)
        self._lock = threading.RLock()  # guards the next; reentrant, as the collector may cancel
        self._in_step: StepPlan | None = None
        self.last = LastStep()

    def validate(self, request: Request) -> None:
        """Raises RequestError, naming the field, when the request can't be served."""
        self.scheduler.validate(request)
        check_bias(request)
        self._grammars.constraint(request.grammar)

    def check_room(self, count: int) -> None:
        """Raises OverloadedError when `count` more requests are more than may wait. From any
        thread; what others submit meanwhile is not seen."""
        most, waiting = self.limits.max_waiting, self.waiting
        if most and waiting + count > most:
            raise OverloadedError(
                f"{waiting} requests wait and at most {most} may; try again in a moment, or start"
                " with a larger max_waiting",
                retry_after=max(1.0, self.pace.step_seconds * waiting),
            )

    @property
    def waiting(self) -> int:
        """Sequences that wait to be computed, those for the prefix store among them."""
        return self.scheduler.waiting + self._waits.arriving

    def submit(self, request: Request) -> Request:
        """Queue a request and return it as it runs: with a seed drawn if it had none."""
        check_bias(request)
        seeded = with_seed(request)
        self.scheduler.check_new(seeded)
        if seeded.id in self._waits:
            raise RequestError(f"request id {seeded.id!r} is in use", param="id")
        if not self._waits.begin(seeded):
            self.scheduler.submit(seeded)
        self._deadlines.add(seeded)
        return seeded

    def abort(self, request_id: str, choice: int | None = None) -> list[Output]:
        """End a request, or one choice of it; its blocks are free at once. Idempotent."""
        return self._end(request_id, choice)

    def _end(
        self, request_id: str, choice: int | None = None, error: OctavoError | None = None
    ) -> list[Output]:
        arriving = self._waits.take(request_id)
        if arriving is not None:
            self.scheduler.submit(arriving)
        held = self._waits.flush(request_id)
        return held + self.scheduler.abort(request_id, choice, error)

    def has_work(self) -> bool:
        """Whether to call `step`: something runs or waits, be it for the prefix store."""
        return self.scheduler.has_work() or bool(self._waits)

    def step(self) -> list[Output]:
        """Run one step. An error of the executor ends the requests of that step, no others; a
        cancelled step brings nothing and will run again. When all there is waits for the prefix
        store, so does this, until `wake`."""
        if self._waits and not self.scheduler.has_work():
            self._waits.sleep()
        for request in self._waits.landed():
            self.scheduler.submit(request)
        late = self._deadlines.end(self._end)
        return self._waits.release(late or self._step())

    def wake(self) -> None:
        """End the wait of a step that has nothing to run, from any thread."""
        self._waits.wake()

    def _step(self) -> list[Output]:
        if self.prefixes is not None:
            self.prefixes.expire()
        ahead = self.ahead.times if self._several is not None else 1
        plan = self.scheduler.schedule(self.pace.rows, ahead)
        if not plan.chunks:
            return []
        try:
            self._copy(plan)
            result = self._run(plan)
        except StepCancelled:
            self.scheduler.undo(plan)
            return []
        except OctavoError as error:
            return self.scheduler.fail(plan, error)
        add_states(plan, self._filler.batch.hidden)
        outputs = self.scheduler.commit(plan, result)
        if self.scheduler.reuse is not None and self.prefixes is not None:
            for request, mark in self.scheduler.reuse.take_due():
                self.prefixes.keep(request, mark)
        return outputs

    def cancel(self, only: Container[str] | None = None) -> None:
        """End the running step early, from any thread: if all it computes is for requests in `only`
        (None: whatever it computes). Nothing happens between steps."""
        with self._lock:
            plan = self._in_step
            if plan is not None and (only is None or plan.serves(only)):
                self.executor.cancel()

    def _run(self, plan: StepPlan) -> StepResult:
        batch = self._filler.fill(plan)
        self._masks.begin(batch, plan.chunks)
        self._enter(plan)
        begin = self._clock()
        try:
            if plan.times > 1 and self._several is not None:
                result = self._several.step_times(batch, plan.times)
            else:
                result = self.executor.step(batch)
            seconds = self._clock() - begin
        finally:
            self._masks.end()
            self._leave()
        rows, sequences = int(batch.row_start[batch.n_seqs]), batch.n_seqs
        self.last = LastStep(rows, sequences, seconds / plan.times)
        if rows == sequences:
            self.ahead.note(seconds, plan.times)
        if rows > sequences:  # a step of decodes can't be cut
            self.pace.note(rows, sequences, seconds, full=plan.budget <= 0)
        return result

    def _enter(self, plan: StepPlan) -> None:
        with self._lock:
            self._in_step = plan

    def _leave(self) -> None:
        # Under the lock: a cancel that was meant for this step can't reach the next one.
        with self._lock:
            self._in_step = None
            self.executor.clear_cancel()

    def _copy(self, plan: StepPlan) -> None:
        for group in {copy.group for copy in plan.copies}:
            pairs = [(copy.source, copy.target) for copy in plan.copies if copy.group == group]
            self.executor.copy_blocks(group, pairs)

    def stats(self) -> EngineStats:
        """Counters and gauges, between steps."""
        stats = read_stats(self.scheduler, self.prefixes, self.pace, self.last)
        held = self.executor.config.kv_tokens
        return dataclasses.replace(stats, waiting=self.waiting, kv_tokens=held)

    def check(self) -> None:
        """Invariants of scheduler and pools, between steps. Raises InternalError."""
        self.scheduler.check()


def with_seed(request: Request) -> Request:
    """The request with a seed: its own, or one drawn now when it draws at all."""
    if request.params.seed is not None or request.params.temperature == 0:
        return request
    params = dataclasses.replace(request.params, seed=secrets.randbits(64))
    return dataclasses.replace(request, params=params)
