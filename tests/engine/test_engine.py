"""Engine and scheduler together, on an executor that reads the past through its block tables."""

from __future__ import annotations

import sys
from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.backends.base import RuntimeConfig, StepBatch, StepResult
from octavo.core.errors import InternalError, RequestError, ResourceError
from octavo.engine.engine import Engine
from octavo.engine.request import Output, Request, SamplingParams, TokenLogprobs
from octavo.evals.overhead import NullExecutor, decoding
from support.fakes import FakeExecutor, FakeModel, fake_executor

VOCAB = 7
CONTEXT = 24
EOS = (6,)


def tokens_by_choice(outputs: list[Output]) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for output in outputs:
        found[output.request_id, output.choice] += output.tokens
    return dict(found)


def run_all(engine: Engine) -> list[Output]:
    outputs = []
    while engine.has_work():
        outputs += engine.step()
        engine.check()
    return outputs


def expected(engine: Engine, request: Request) -> dict[tuple[str, int], list[int]]:
    model = engine.executor.model
    return {
        (request.id, choice): model.answer(request, choice, engine.limits.context)
        for choice in range(request.params.n)
    }


CASES = [
    SamplingParams(max_tokens=9),
    SamplingParams(max_tokens=9, n=3, temperature=1.0, seed=5),
    SamplingParams(max_tokens=9, temperature=0.75, top_k=4, top_p=0.75, min_p=0.125, seed=2**63),
    SamplingParams(max_tokens=9, repetition_penalty=1.5, presence_penalty=0.5),
    SamplingParams(max_tokens=9, frequency_penalty=1.25, temperature=1.0, seed=3, n=2),
    SamplingParams(max_tokens=9, logit_bias=((0, 3.0), (3, -4.5)), min_tokens=6),
    SamplingParams(max_tokens=9, ignore_eos=True, stop_token_ids=(2,), min_tokens=3),
]


@pytest.mark.parametrize("params", CASES)
@pytest.mark.parametrize("windows", [(None,), (None, 5), (3,)])
def test_every_parameter_reaches_the_executor(params, windows):
    engine = Engine(fake_executor(windows=windows))
    request = Request("a", (1, 2, 3, 4, 5, 1, 2, 3), params, EOS)
    engine.submit(request)
    assert tokens_by_choice(run_all(engine)) == expected(engine, request)


def test_min_tokens_hold_back_every_stop_token():
    """Without it, this answer would end earlier."""
    free = Request("a", (1, 2), SamplingParams(max_tokens=12, stop_token_ids=(0, 1, 2)), EOS)
    held = Request("a", (1, 2), SamplingParams(max_tokens=12, stop_token_ids=(0, 1, 2),
                                               min_tokens=8), EOS)  # fmt: skip
    model = FakeModel(VOCAB)
    assert len(model.answer(free)) < 8 <= len(model.answer(held))
    engine = Engine(fake_executor())
    engine.submit(held)
    assert tokens_by_choice(run_all(engine)) == {("a", 0): model.answer(held)}


@pytest.mark.parametrize("chunk", [1, 2, 5, 16])
def test_logprobs_and_prompt_logprobs_for_any_chunking(chunk):
    config = RuntimeConfig(max_tokens=chunk, max_seqs=3, context=CONTEXT, block_size=4)
    engine = Engine(fake_executor(config=config))
    params = SamplingParams(max_tokens=4, logprobs=3, prompt_logprobs=True, n=2, temperature=1.0)
    request = engine.submit(Request("a", (1, 2, 3, 4, 5, 6, 1, 2, 3), params))
    outputs = run_all(engine)
    model = engine.executor.model
    scored = [score for output in outputs for score in output.prompt_logprobs]
    close(scored, model.prompt_logprobs(request))
    for choice in range(2):
        answer = model.answer(request, choice)
        got = [lp for o in outputs if o.choice == choice for lp in o.logprobs]
        close(got, [model.next(request, choice, [*request.prompt, *answer[:i]]).logprobs
                    for i in range(4)])  # fmt: skip


def close(got: list[TokenLogprobs], wanted: list[TokenLogprobs]) -> None:
    """Equal but for the result's fp32."""
    assert [g.token for g in got] == [w.token for w in wanted]
    for g, w in zip(got, wanted, strict=True):
        assert g.logprob == pytest.approx(w.logprob, rel=2**-23)
        assert [t for t, _ in g.top] == [t for t, _ in w.top]
        assert [v for _, v in g.top] == pytest.approx([v for _, v in w.top], rel=2**-23)


def test_preempted_and_recomputed_answers_are_the_same():
    config = RuntimeConfig(max_tokens=6, max_seqs=3, context=CONTEXT, block_size=4)
    engine = Engine(fake_executor(kv_blocks=6, config=config))
    requests = [
        Request(str(i), (i + 1, 2, 3), SamplingParams(
            max_tokens=18, ignore_eos=True, temperature=1.0, seed=i, frequency_penalty=0.5,
            prompt_logprobs=True))
        for i in range(4)
    ]  # fmt: skip
    for request in requests:
        engine.submit(request)
    outputs, preemptions = [], 0
    while engine.has_work():
        running = {s.request.id for s in engine.scheduler._running}
        outputs += engine.step()
        waiting = {s.request.id for s in engine.scheduler._waiting}
        preemptions += len(running & waiting)
        engine.check()
    assert preemptions > 0
    for request in requests:
        assert tokens_by_choice(outputs)[request.id, 0] == engine.executor.model.answer(request)
        scores = [s for o in outputs if o.request_id == request.id for s in o.prompt_logprobs]
        assert len(scores) == 2  # delivered once, recomputed or not


def test_seeds_are_drawn_once_and_reported():
    engine = Engine(fake_executor())
    request = Request("a", (1, 2), SamplingParams(temperature=1.0, max_tokens=6))
    seeded = engine.submit(request)
    assert seeded.params.seed is not None
    assert tokens_by_choice(run_all(engine)) == expected(engine, seeded)
    greedy = Request("b", (1, 2), SamplingParams())
    assert engine.submit(greedy) is greedy


def test_an_executor_error_ends_its_requests_and_no_others():
    config = RuntimeConfig(max_tokens=6, max_seqs=1, context=CONTEXT, block_size=4)
    executor = fake_executor(config=config)
    engine = Engine(executor)
    first, second = (Request(i, (1, 2), SamplingParams(max_tokens=3, n=n), EOS)
                     for i, n in (("a", 2), ("b", 1)))  # fmt: skip
    engine.submit(first)
    engine.submit(second)
    executor.fail_with = ResourceError("no memory for the step")
    outputs = engine.step()
    assert [(o.request_id, o.choice, o.finish) for o in outputs] == [
        ("a", 0, "error"),
        ("a", 1, "error"),
    ]
    assert all(output.error is executor.fail_with for output in outputs)
    executor.fail_with = None
    assert tokens_by_choice(run_all(engine)) == expected(engine, second)


def slow_engine(seconds_per_row: float, max_tokens: int = 512) -> tuple[Engine, list[int]]:
    """An engine whose clock advances with the rows that its executor runs; and rows per step."""
    config = RuntimeConfig(max_tokens=max_tokens, max_seqs=4, context=4096, block_size=16)
    executor = NullExecutor(config, 1024, (None,))
    rows: list[int] = []
    step = executor.step

    def counted(batch: StepBatch) -> StepResult:
        rows.append(int(batch.row_start[batch.n_seqs]))
        return step(batch)

    executor.step = counted
    return Engine(executor, clock=lambda: sum(rows) * seconds_per_row), rows


@pytest.mark.parametrize("milliseconds", [0.1, 1.0, 5.0, 15.0])
def test_a_step_of_a_long_prefill_takes_a_quarter_of_a_second(milliseconds):
    engine, rows = slow_engine(milliseconds / 1000)
    engine.submit(Request("a", (1,) * 4000, SamplingParams(max_tokens=2, ignore_eos=True)))
    run_all(engine)
    settled = rows[3:-2]  # but for the start, the rest of the prompt, and the decode
    seconds = [count * milliseconds / 1000 for count in settled]
    assert sum(rows) == 4001
    assert max(seconds) <= 0.25
    for count, took in zip(settled, seconds, strict=True):  # no smaller than it has to be
        assert count == 512 or took + 16 * milliseconds / 1000 >= 0.25 or count == 16


def test_decodes_come_on_top_of_what_a_prefill_may_have():
    engine, rows = slow_engine(0.02)
    for id_ in "abc":
        engine.submit(Request(id_, (1,), SamplingParams(max_tokens=300, ignore_eos=True)))
    engine.step()
    engine.submit(Request("d", (1,) * 200, SamplingParams(max_tokens=1)))
    for _ in range(5):
        engine.step()
    assert engine.pace.rows == 16
    assert rows[-1] == 3 + 16


def test_a_cancelled_step_is_run_again():
    executor = fake_executor()
    engine = Engine(executor)
    request = engine.submit(
        Request("a", (1, 2, 3, 4, 5), SamplingParams(n=2, temperature=1.0, frequency_penalty=1.0))
    )
    outputs = []
    for row in (3, 1, 0, 1):  # the prefill, the forks' first step, and later
        executor.cancel_after = row
        assert engine.step() == []
        engine.check()
        assert not executor.cancelled.is_set()
        outputs += engine.step()
    assert len(executor.rows) == 8
    assert tokens_by_choice(outputs + run_all(engine)) == expected(engine, request)


def test_a_choice_that_takes_over_from_an_aborted_one_is_what_it_is_alone():
    """The first had a slot: its step was cancelled, and it was aborted before the next."""
    config = RuntimeConfig(max_tokens=2, max_seqs=2, context=24, block_size=1)
    executor = fake_executor(2, (None,), 24, config)
    engine = Engine(executor)
    request = Request("a", (0, 0), SamplingParams(max_tokens=8, temperature=1.0, seed=1, n=2), ())
    engine.submit(request)
    executor.cancel_after = 0
    assert engine.step() == []
    executor.cancel_after = None
    engine.abort("a", 0)
    tokens: list[int] = []
    while engine.has_work():
        for output in engine.step():
            assert output.choice == 1
            tokens += output.tokens
    assert tokens == executor.model.answer(request, 1, 24)
    assert tokens != executor.model.answer(request, 0, 24)


def test_cancel_is_for_the_running_step_and_its_requests():
    executor = fake_executor()
    engine = Engine(executor)
    engine.cancel()
    assert not executor.cancelled.is_set()  # nothing runs
    found: list[bool] = []
    step = executor.step

    def asking(batch: StepBatch) -> StepResult:
        for only in ({"a"}, {"b"}, set(), {"a", "b"}):
            engine.cancel(only)
            found.append(executor.cancelled.is_set())
        return step(batch)

    executor.step = asking
    for id_ in "ab":
        engine.submit(Request(id_, (1, 2), SamplingParams(max_tokens=2)))
    assert engine.step() == []
    assert found == [False, False, False, True]


def test_a_bias_list_that_is_too_long_is_refused():
    executor = FakeExecutor(FakeModel(2000), RuntimeConfig(
        max_tokens=4, max_seqs=2, context=8, block_size=4), (8,))  # fmt: skip
    bias = tuple((token, 1.0) for token in range(1024))
    Engine(executor).submit(Request("a", (1,), SamplingParams(logit_bias=bias, max_tokens=2)))
    held = SamplingParams(logit_bias=bias, max_tokens=2, min_tokens=1)
    with pytest.raises(RequestError, match="at most 1024"):
        Engine(executor).submit(Request("a", (1,), held, eos=(5,)))


def test_unresolved_config_is_our_bug():
    with pytest.raises(InternalError):
        Engine(fake_executor(config=RuntimeConfig()))


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 3),
    n=st.integers(1, 3),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    prompt_logprobs=st.booleans(),
    ignore_eos=st.booleans(),
)


class AnyInterleaving(RuleBasedStateMachine):
    """Whatever is submitted, aborted and stepped: each request gets what it gets alone."""

    @initialize(
        windows=st.sampled_from([(None,), (None, 5), (4,)]),
        blocks=st.integers(7, 14),
        max_tokens=st.integers(1, 7),
        max_seqs=st.integers(1, 4),
    )
    def start(self, windows, blocks, max_tokens, max_seqs) -> None:
        config = RuntimeConfig(
            max_tokens=max_tokens, max_seqs=max_seqs, context=CONTEXT, block_size=4
        )
        self.executor = fake_executor(VOCAB, windows, blocks, config)
        self.engine = Engine(self.executor)
        self.requests: dict[str, Request] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.scores: dict[str, int] = {}
        self.finished: dict[tuple[str, int], str] = {}

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            key = output.request_id, output.choice
            assert key not in self.finished
            self.tokens[key] += output.tokens
            self.scores[key[0]] += len(output.prompt_logprobs)
            if output.finish is not None:
                self.finished[key] = output.finish

    @rule(prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=18), params=PARAMS)
    def submit(self, prompt, params) -> None:
        request = Request(str(len(self.requests)), tuple(prompt), params, EOS)
        self.engine.submit(request)
        self.requests[request.id] = request
        self.scores[request.id] = 0
        for choice in range(params.n):
            self.tokens[request.id, choice] = []

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), one_choice=st.booleans())
    def abort(self, data, one_choice) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.requests)))
        choice = data.draw(st.integers(0, 2)) if one_choice else None
        outputs = self.engine.abort(id_, choice)
        assert all(output.finish == "abort" for output in outputs)
        self.take(outputs)

    @rule(after=st.integers(0, 6))
    def cancelled_step(self, after) -> None:
        """All of it is as if it had never been, whatever the step has written until then."""
        before = dict(self.tokens), dict(self.scores), dict(self.finished)
        steps = len(self.executor.rows)
        self.executor.cancel_after = after
        self.take(self.engine.step())
        self.engine.check()
        ran = len(self.executor.rows) > steps
        if ran and after < self.executor.rows[-1]:
            assert before == (self.tokens, self.scores, self.finished)
        self.executor.cancel_after = None

    @rule(rows=st.integers(1, 8))
    def change_pace(self, rows) -> None:
        self.engine.pace.rows = rows

    @rule(count=st.integers(1, 6))
    def step(self, count) -> None:
        for _ in range(count):
            self.take(self.engine.step())
            self.engine.check()

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.check()
        for key, tokens in self.tokens.items():
            if tokens:
                request = self.requests[key[0]]
                assert tokens == self.answer(request, key[1])[: len(tokens)]

    def answer(self, request: Request, choice: int) -> list[int]:
        return self.executor.model.answer(request, choice, CONTEXT)

    def teardown(self) -> None:
        """No starvation: all ends within as many steps as all tokens, each recomputed, may take."""
        if not hasattr(self, "engine"):
            return
        bound = sum(2 * CONTEXT**2 * request.params.n for request in self.requests.values())
        for _ in range(bound):
            if not self.engine.has_work():
                break
            self.take(self.engine.step())
        assert not self.engine.has_work()
        self.engine.check()
        assert all(pool.free == pool.n_blocks for pool in self.engine.scheduler.pool.groups)
        assert set(self.finished) == set(self.tokens)
        for key, tokens in self.tokens.items():
            whole = self.answer(self.requests[key[0]], key[1])
            assert tokens == (whole if self.finished[key] != "abort" else whole[: len(tokens)])
        for id_, request in self.requests.items():  # once, however often it was computed
            wanted = len(request.prompt) - 1 if request.params.prompt_logprobs else 0
            aborted = any(self.finished[id_, c] == "abort" for c in range(request.params.n))
            assert self.scores[id_] == wanted or (aborted and self.scores[id_] < wanted)


AnyInterleaving.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAnyInterleaving = AnyInterleaving.TestCase


def calls_per_step(engine: Engine, steps: int = 64) -> float:
    """Calls of Python and C functions: a measure of overhead that no busy machine disturbs."""
    calls = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        for _ in range(steps):
            engine.step()
    finally:
        sys.setprofile(None)
    return calls / steps


def test_python_overhead_of_a_step():
    """At about 0.1 us a call, the budget of 100 us + 5 us a sequence; docs/engine.md has times."""
    one, many = (calls_per_step(decoding(n_seqs)) for n_seqs in (1, 17))
    assert one < 150
    assert (many - one) / 16 < 50
