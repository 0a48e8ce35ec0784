"""The engine: one scheduler, one executor, and a step that joins them."""

from __future__ import annotations

import dataclasses
import secrets

from octavo.backends.base import Executor
from octavo.core.errors import OctavoError
from octavo.engine.blocks import KvPool
from octavo.engine.fill import Filler, check_bias, max_blocks
from octavo.engine.request import Output, Request
from octavo.engine.scheduler import Limits, Scheduler, StepPlan


class Engine:
    """Submit requests, then step while there is work. Single-threaded: clients add threads.

    `validate` reads only what never changes, and may be called from any thread.
    """

    def __init__(self, executor: Executor, limits: Limits | None = None) -> None:
        config, layout = executor.config, executor.layout
        self.limits = limits or Limits(config.max_tokens, config.max_seqs, config.context)
        blocks = max_blocks(self.limits.context, layout.block_size)
        pool = KvPool(layout, executor.kv_blocks, blocks)
        self.executor = executor
        self.scheduler = Scheduler(pool, self.limits, executor.spec.vocab)
        self._filler = Filler(executor, blocks)

    def validate(self, request: Request) -> None:
        """Raises RequestError, naming the field, when the request can't be served."""
        self.scheduler.validate(request)
        check_bias(request)

    def submit(self, request: Request) -> Request:
        """Queue a request and return it as it runs: with a seed drawn if it had none."""
        check_bias(request)
        seeded = with_seed(request)
        self.scheduler.submit(seeded)
        return seeded

    def abort(self, request_id: str, choice: int | None = None) -> list[Output]:
        """End a request, or one choice of it; its blocks are free at once. Idempotent."""
        return self.scheduler.abort(request_id, choice)

    def has_work(self) -> bool:
        return self.scheduler.has_work()

    def step(self) -> list[Output]:
        """Run one step. An error of the executor ends the requests of that step, no others."""
        plan = self.scheduler.schedule()
        if not plan.chunks:
            return []
        try:
            self._copy(plan)
            result = self.executor.step(self._filler.fill(plan))
        except OctavoError as error:
            return self.scheduler.fail(plan, str(error))
        return self.scheduler.commit(plan, result)

    def _copy(self, plan: StepPlan) -> None:
        for group in {copy.group for copy in plan.copies}:
            pairs = [(copy.source, copy.target) for copy in plan.copies if copy.group == group]
            self.executor.copy_blocks(group, pairs)

    def check(self) -> None:
        """Invariants of scheduler and pools, between steps. Raises InternalError."""
        self.scheduler.check()


def with_seed(request: Request) -> Request:
    """The request with a seed: its own, or one drawn now when it draws at all."""
    if request.params.seed is not None or request.params.temperature == 0:
        return request
    params = dataclasses.replace(request.params, seed=secrets.randbits(64))
    return dataclasses.replace(request, params=params)
