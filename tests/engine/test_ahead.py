from __future__ import annotations

import pytest

from octavo.backends.base import RuntimeConfig
from octavo.engine.ahead import Ahead
from octavo.engine.engine import Engine
from octavo.engine.request import Output, Request, SamplingParams
from support.fakes import CountingModel, FakeAheadExecutor, fake_executor
from support.native_models import gemma_like, llama_like, load_native

CONFIG = RuntimeConfig(max_tokens=12, max_seqs=3, context=48, block_size=4)
FREE = SamplingParams(max_tokens=20, temperature=1.0, seed=3, ignore_eos=True)


def test_nothing_is_known_at_first():
    assert Ahead().times == 1


@pytest.mark.parametrize(
    ("seconds", "times"), [(0.0, 8), (0.001, 8), (0.002, 5), (0.0051, 1), (0.04, 1)]
)
def test_a_call_lasts_ten_milliseconds_at_most(seconds, times):
    ahead = Ahead()
    ahead.note(seconds, 1)
    assert ahead.times == times


def test_a_long_call_is_judged_by_its_tokens():
    ahead = Ahead()
    ahead.note(0.016, 8)
    assert ahead.times == 5


def engine_of(most: int, ahead: bool = True) -> Engine:
    engine = Engine(fake_executor(config=CONFIG, ahead=ahead), clock=lambda: 0.0)
    engine.ahead.most = most
    return engine


def step_until(engine: Engine, steps: int) -> list[Output]:
    return [output for _ in range(steps) for output in engine.step()]


def run_all(engine: Engine) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {}
    while engine.has_work():
        for output in engine.step():
            tokens.setdefault(output.request_id, []).extend(output.tokens)
    return tokens


def test_decodes_run_ahead_and_answers_stay():
    engines = [engine_of(most) for most in (1, 5)]
    for engine in engines:
        for id_ in ("a", "b"):
            engine.submit(Request(id_, (1, 2, 3), FREE))
    answers = [run_all(engine) for engine in engines]
    assert answers[0] == answers[1]
    calls = [len(engine.executor.rows) for engine in engines]  # type: ignore[attr-defined]
    assert calls[0] == calls[1] == 20  # steps of the fake are steps, however many a call runs
    assert max(engines[1].executor.seqs) == 2  # type: ignore[attr-defined]


def test_what_comes_behind_a_stop_is_not_said():
    executor = FakeAheadExecutor(CountingModel(30), CONFIG, (64,))
    engine = Engine(executor, clock=lambda: 0.0)
    engine.submit(Request("a", (1,), SamplingParams(max_tokens=30), eos=(7,)))
    outputs = [output for _ in range(9) for output in engine.step()]
    assert [token for output in outputs for token in output.tokens] == [2, 3, 4, 5, 6, 7]
    assert outputs[-1].finish == "stop"
    assert len(executor.rows) > 6  # it had gone on
    engine.check()
    assert not engine.has_work()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=9, frequency_penalty=0.5, ignore_eos=True),
        SamplingParams(max_tokens=9, min_tokens=9),
    ],
)
def test_what_depends_on_its_own_past_takes_one_token_a_call(params):
    engine = engine_of(5)
    engine.submit(Request("a", (1, 2, 3), params, eos=(6,)))
    engine.step()
    while engine.has_work():
        assert len(engine.step()) == 1


def test_nobody_waits_for_a_call_of_several_tokens():
    engine = engine_of(5)
    for id_ in "abcd":  # of whom three run
        engine.submit(Request(id_, (1, 2, 3), FREE))
    step_until(engine, 3)
    assert engine.scheduler.waiting == 1
    assert len(engine.step()) == 3


def test_without_blocks_for_all_it_goes_token_by_token():
    config = RuntimeConfig(max_tokens=12, max_seqs=2, context=24, block_size=4)
    engine = Engine(fake_executor(kv_blocks=7, config=config, ahead=True), clock=lambda: 0.0)
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    for id_ in "ab":
        engine.submit(Request(id_, (1, 2, 3, 4), params))
    tokens = run_all(engine)
    assert all(len(said) == 16 for said in tokens.values())
    engine.check()


def test_an_executor_that_can_t_is_not_asked():
    engine = engine_of(5, ahead=False)
    engine.submit(Request("a", (1, 2, 3), FREE))
    engine.step()
    assert len(engine.step()) == 1


@pytest.mark.parametrize("spec", [llama_like(), gemma_like()], ids=["llama", "gemma"])
def test_native_bits_do_not_depend_on_it(spec):
    params = SamplingParams(max_tokens=40, temperature=0.9, seed=5, logprobs=3, ignore_eos=True)
    config = RuntimeConfig(max_tokens=64, max_seqs=4, context=256, kv_tokens=1024, threads=2)
    found = []
    for most in (1, 8):
        engine = Engine(load_native(spec, config), clock=lambda: 0.0)
        engine.ahead.most = most
        for id_ in "ab":
            engine.submit(Request(id_, tuple(range(3, 30)), params))
        outputs: list[Output] = []
        longest = 0
        while engine.has_work():
            new = engine.step()
            longest = max(longest, len(new))
            outputs += new
        engine.executor.close()
        found.append(
            {i: [(o.tokens, o.logprobs) for o in outputs if o.request_id == i] for i in "ab"}
        )
        assert longest == 2 * most
    assert found[0] == found[1]
