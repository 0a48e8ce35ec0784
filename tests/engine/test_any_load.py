"""All of the engine at once under any load: the pool, the prefix cache, pins, priorities, tenants,
deadlines, forks, aborts and cancelled steps, with an executor that reads the past through its block
tables.

Two tokens make prompts share prefixes by chance, and pools from "barely one request" to a hundred
blocks make them fight for room. After every step all books are checked; every answer is what the
request gets alone.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import DeadlineError, RequestError
from octavo.engine.engine import Engine
from octavo.engine.request import CachePolicy, Mark, Output, Request, SamplingParams
from support.fakes import fake_executor

VOCAB, CONTEXT, EOS = 2, 24, (1,)
WINDOWS = [(None,), (None, 5), (4,)]

PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    seed=st.integers(0, 3),
    n=st.sampled_from([1, 1, 2, 4]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    prompt_logprobs=st.sampled_from([False, False, True]),
    ignore_eos=st.sampled_from([True, True, False]),
)
MARKS = st.lists(
    st.tuples(st.integers(1, 20), st.floats(0.5, 20), st.sampled_from(["", "a", "b"])), max_size=2
)
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=20).map(tuple)


class AnyLoad(RuleBasedStateMachine):
    """One rule is one round. Time passes only when a rule says so."""

    rounds = 0  # of all machines

    @initialize(
        windows=st.sampled_from(WINDOWS),
        block_size=st.sampled_from([1, 2, 4]),
        blocks=st.sampled_from([0, 1, 5, 30, 100]),
        max_tokens=st.integers(1, 9),
        max_seqs=st.integers(1, 5),
        ahead=st.booleans(),
    )
    def start(self, windows, block_size, blocks, max_tokens, max_seqs, ahead) -> None:
        self.now = 0.0
        least = CONTEXT // block_size  # one request of the whole context
        config = RuntimeConfig(
            max_tokens=max(max_tokens, max_seqs), max_seqs=max_seqs, context=CONTEXT,
            block_size=block_size,
        )  # fmt: skip
        executor = fake_executor(VOCAB, windows, max(least + blocks, 7), config, ahead)
        self.executor, self.engine = executor, Engine(executor, clock=lambda: self.now)
        self.requests: dict[str, Request] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.finished: dict[tuple[str, int], str] = {}
        self.empty_steps = 0

    @invariant()
    def count(self) -> None:
        AnyLoad.rounds += 1

    @rule(
        prompt=PROMPTS,
        params=PARAMS,
        priority=st.sampled_from([0, 0, 0, -1, 2]),
        tenant=st.sampled_from(["", "x", "y"]),
        timeout=st.sampled_from([0.0, 0.0, 3.0]),
        write=st.sampled_from(["all", "all", "marks", "none"]),
        read=st.sampled_from([True, True, True, False]),
        salt=st.sampled_from(["", "", "s"]),
        marks=MARKS,
    )
    def submit(self, prompt, params, priority, tenant, timeout, write, read, salt, marks) -> None:
        held = tuple(Mark(min(t, len(prompt)), ttl, name) for t, ttl, name in marks)
        policy = CachePolicy(read, write, salt, key=tenant, marks=held)
        id_ = str(len(self.requests))
        request = Request(id_, prompt, params, EOS, priority, tenant, timeout, policy)
        self.engine.submit(request)
        self.requests[id_] = request
        for choice in range(params.n):
            self.tokens[id_, choice] = []

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), choice=st.sampled_from([None, 0, 1, 3]))
    def abort(self, data, choice) -> None:
        self.take(self.engine.abort(data.draw(st.sampled_from(sorted(self.requests))), choice))
        self.check()

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0]))
    def wait(self, seconds) -> None:
        self.now += seconds

    @rule(name=st.sampled_from(["a", "b"]))
    def unpin(self, name) -> None:
        self.engine.prefixes.drop(name)
        self.check()

    @rule(after=st.integers(0, 6))
    def cancelled_step(self, after) -> None:
        self.executor.cancel_after = after
        self.take(self.engine.step())
        self.executor.cancel_after = None
        self.check()

    @rule(rows=st.integers(1, 8))
    def change_pace(self, rows) -> None:
        self.engine.pace.rows = rows

    @rule(most=st.integers(1, 6))
    def change_ahead(self, most) -> None:
        self.engine.ahead.most = most

    @rule(count=st.integers(1, 4))
    def steps(self, count) -> None:
        for _ in range(count):
            self.step()

    def step(self) -> None:
        """Work never pauses for longer than a step that only made room."""
        before = len(self.executor.rows), len(self.finished)
        self.take(self.engine.step())
        self.check()
        moved = before != (len(self.executor.rows), len(self.finished))
        self.empty_steps = 0 if moved or not self.engine.has_work() else self.empty_steps + 1
        assert self.empty_steps < 2

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            key = output.request_id, output.choice
            assert key not in self.finished
            self.tokens[key] += output.tokens
            if output.error is not None:
                assert isinstance(output.error, DeadlineError)
            if output.finish is not None:
                self.finished[key] = output.finish
                self.judge(key)

    def judge(self, key: tuple[str, int]) -> None:
        """Whole and right, or cut short and right up to there."""
        tokens = self.tokens[key]
        alone = self.executor.model.answer(self.requests[key[0]], key[1], CONTEXT)
        whole = self.finished[key] in ("stop", "length")
        assert tokens == (alone if whole else alone[: len(tokens)])

    def check(self) -> None:
        self.engine.check()
        self.engine.prefixes.cache.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        bound = sum(2 * CONTEXT**2 * request.params.n for request in self.requests.values())
        while self.engine.has_work() and bound:
            self.step()
            bound -= 1
        assert set(self.finished) == set(self.tokens)  # nobody starved
        self.now += 1e6
        self.engine.prefixes.expire()
        self.check()
        assert all(pool.free == pool.n_blocks for pool in self.engine.scheduler.pool.groups)


def run_rounds(examples: int, rounds: int) -> int:
    """Rounds that were run: at most `rounds` of each example."""
    before = AnyLoad.rounds
    run_state_machine_as_test(
        AnyLoad,
        settings=settings(
            max_examples=examples, stateful_step_count=rounds, deadline=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
        ),
    )  # fmt: skip
    return AnyLoad.rounds - before


def test_any_load():
    assert run_rounds(20, 50) > 500


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_rounds():
    assert run_rounds(1100, 100) >= 100_000


@pytest.mark.parametrize("flooding_priority", [0, 1])
def test_a_flood_of_one_tenant_does_not_starve_another(flooding_priority):
    """The flood never ends; who comes late is served within the time of a few of its requests."""
    config = RuntimeConfig(max_tokens=6, max_seqs=2, context=CONTEXT, block_size=4)
    engine = Engine(fake_executor(VOCAB, kv_blocks=12, config=config))
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    count, done, steps = 0, set[str](), 0
    late = Request("late", (0, 1, 1), params, tenant="quiet")
    while "late" not in done:
        if steps == 30:
            engine.submit(late)
        while engine.scheduler.waiting < 6:
            flood = dataclasses.replace(
                late, id=str(count), tenant="loud", priority=flooding_priority
            )
            engine.submit(flood)
            count += 1
        done |= {output.request_id for output in engine.step() if output.finish is not None}
        steps += 1
        assert steps < 60


def test_what_can_never_fit_is_refused_whatever_runs():
    engine = Engine(fake_executor(VOCAB, kv_blocks=3))
    with pytest.raises(RequestError, match="KV cache"):
        engine.submit(Request("a", (0,) * 12, SamplingParams(max_tokens=4)))
