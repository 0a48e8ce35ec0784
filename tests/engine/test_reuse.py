"""The prefix cache, priorities and deadlines through the engine, on an executor that reads the past
through its block tables: a wrong hit changes the answer."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import DeadlineError, OverloadedError
from octavo.engine.engine import Engine
from octavo.engine.pace import Pace
from octavo.engine.request import CachePolicy, Mark, Output, Request, SamplingParams
from octavo.engine.reuse import common_prefix
from octavo.engine.scheduler import Limits
from support.fakes import FakeModel, fake_executor
from support.native_models import llama_like, load_native

CONFIG = RuntimeConfig(max_tokens=6, max_seqs=3, context=24, block_size=4)
PROMPT = (1, 2, 3, 4, 5, 1, 2, 3, 4, 5)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def engine_of(
    windows: tuple[int | None, ...] = (None,), blocks: int = 32, clock: Clock | None = None
) -> Engine:
    executor = fake_executor(windows=windows, kv_blocks=blocks, config=CONFIG)
    return Engine(executor, clock=clock or Clock())


def ask(
    engine: Engine, id_: str, prompt: tuple[int, ...] = PROMPT, **fields: object
) -> list[Output]:
    """Runs alone to its end; the answer is checked."""
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    request = engine.submit(Request(id_, prompt, params, **fields))
    outputs = []
    while engine.has_work():
        outputs += engine.step()
        engine.check()
    tokens = [t for output in outputs for t in output.tokens]
    assert tokens == engine.executor.model.answer(request)
    return outputs


def use(outputs: list[Output]) -> tuple[int, int, str, int]:
    [found] = [output.cache for output in outputs if output.cache is not None]
    return dataclasses.astuple(found)


@pytest.mark.parametrize("windows", [(None,), (None, 5), (3,)])
def test_a_second_request_begins_behind_what_it_shares(windows):
    engine = engine_of(windows)
    assert use(ask(engine, "a")) == (0, 8, "first", -1)
    rows = sum(engine.executor.rows)
    assert use(ask(engine, "b")) == (8, 0, "hit", -1)
    assert sum(engine.executor.rows) - rows == 2 + 2  # the last two of the prompt, two decodes


def test_a_prompt_of_whole_blocks_computes_its_last_block_again():
    engine = engine_of()
    ask(engine, "a", PROMPT[:8])
    assert use(ask(engine, "b", PROMPT[:8]))[0] == 4


def test_answers_are_reused_by_the_next_turn():
    engine = engine_of()
    answer = tuple(t for o in ask(engine, "a") for t in o.tokens)
    assert use(ask(engine, "b", (*PROMPT, *answer, 1)))[0] == 12


def test_a_miss_names_the_token_where_it_parts():
    engine = engine_of()
    ask(engine, "a")
    assert use(ask(engine, "b", (*PROMPT[:6], 6, 6, 6))) == (4, 4, "input_changed", 6)


def test_what_was_pushed_out_is_called_evicted():
    engine = engine_of(blocks=4)
    ask(engine, "a")
    ask(engine, "b", (3, 3, 3, 3, 3, 3, 3, 3), cache=CachePolicy(key="other"))
    ask(engine, "c", (4, 4, 4, 4, 4, 4, 4, 4), cache=CachePolicy(key="other"))
    assert use(ask(engine, "d")) == (0, 8, "evicted", -1)


@pytest.mark.parametrize(
    ("policy", "second"),
    [
        (CachePolicy(salt="x"), (0, 8, "first", -1)),
        (CachePolicy(read=False), (0, 0, "not_read", -1)),
        (CachePolicy(write="none"), (8, 0, "hit", -1)),
    ],
)
def test_policies_of_the_second(policy, second):
    engine = engine_of()
    ask(engine, "a")
    assert use(ask(engine, "b", cache=policy)) == second


def test_only_up_to_the_last_mark_is_left():
    engine = engine_of()
    ask(engine, "a", cache=CachePolicy(write="marks", marks=(Mark(6, 10.0),)))
    assert use(ask(engine, "b"))[0] == 4  # 6 tokens are one whole block
    assert engine.prefixes.cache.pinned_blocks == (1,)


def test_explicit_without_a_mark_leaves_nothing():
    engine = engine_of()
    ask(engine, "a", cache=CachePolicy(write="marks"))
    assert use(ask(engine, "b"))[0] == 0


def test_scored_prompts_are_computed_whole():
    engine = engine_of()
    ask(engine, "a")
    params = SamplingParams(max_tokens=1, prompt_logprobs=True)
    engine.submit(Request("b", PROMPT, params))
    scores = []
    while engine.has_work():
        scores += [s for o in engine.step() for s in o.prompt_logprobs]
    assert len(scores) == len(PROMPT) - 1


def test_choices_fork_behind_a_whole_hit():
    """The shared part is all but the last token, and that is cached to the token."""
    engine = engine_of()
    ask(engine, "a", PROMPT[:9])
    params = SamplingParams(max_tokens=4, n=3, temperature=1.0, seed=3, ignore_eos=True)
    request = engine.submit(Request("b", PROMPT[:9], params))
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while engine.has_work():
        for output in engine.step():
            found[output.choice] += output.tokens
        engine.check()
    model = engine.executor.model
    assert found == {choice: model.answer(request, choice) for choice in range(3)}


def test_a_mark_survives_pressure_until_its_time():
    clock = Clock()
    engine = engine_of(blocks=8, clock=clock)
    ask(engine, "a", cache=CachePolicy(marks=(Mark(8, 60.0, name="rules"),)))
    for i in range(6):
        ask(engine, str(i), (i, 6, 5, 4, 3, 2, 1, i, i), cache=CachePolicy(key="noise"))
    assert use(ask(engine, "b"))[0] == 8
    clock.now = 61.0
    for i in range(6):
        ask(engine, str(i), (6, i, 5, 4, 3, 2, 1, i, i), cache=CachePolicy(key="noise"))
    assert use(ask(engine, "c"))[0] < 8
    assert engine.prefixes.cache.pins == {}


def test_pins_get_at_most_half_of_the_pool():
    engine = engine_of(blocks=6)
    ask(engine, "a", cache=CachePolicy(marks=(Mark(8, 60.0),)))
    ask(engine, "b", tuple(reversed(PROMPT)), cache=CachePolicy(marks=(Mark(8, 60.0),)))
    assert engine.prefixes.cache.pinned_blocks == (2,)
    assert engine.prefixes.refused == 1


def test_a_request_that_fits_only_without_a_pin_gets_its_blocks():
    engine = engine_of(blocks=4)
    ask(engine, "a", cache=CachePolicy(marks=(Mark(8, 60.0),)))
    ask(engine, "b", (6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6))
    assert engine.prefixes.cache.pins == {}


def test_a_request_that_outgrows_what_pins_leave_gets_their_blocks():
    """It begins beside the pin, and finds no block for its last tokens: it would begin anew for
    ever, alone, until the pin's time is over."""
    engine = engine_of(blocks=6)
    ask(engine, "a", cache=CachePolicy(marks=(Mark(8, 1e9),)))
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    alone = CachePolicy(read=False, write="none")  # else it would find its own blocks again
    request = engine.submit(Request("b", (6,) * 8, params, cache=alone))
    found: list[int] = []
    for _ in range(40):
        found += [token for output in engine.step() for token in output.tokens]
        engine.check()
    assert found == engine.executor.model.answer(request)
    assert engine.prefixes.cache.pins == {}


def test_a_higher_priority_takes_a_place_and_nobody_is_changed():
    engine = engine_of()
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    requests = [Request(str(i), (i + 1, 2, 3), params, priority=5) for i in range(3)]
    urgent = Request("urgent", (4, 4), params, priority=-1)
    for request in requests:
        engine.submit(request)
    found: dict[str, list[int]] = {r.id: [] for r in (*requests, urgent)}
    order = []
    for step in range(200):
        if step == 2:
            engine.submit(urgent)
        for output in engine.step():
            found[output.request_id] += output.tokens
            if output.finish:
                order.append(output.request_id)
        engine.check()
        if step > 2 and not engine.has_work():
            break
    model = engine.executor.model
    assert found == {r.id: model.answer(r) for r in (*requests, urgent)}
    assert order.index("urgent") < order.index("2")


def test_a_timeout_ends_a_request_with_its_own_error():
    clock = Clock()
    engine = engine_of(clock=clock)
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    engine.submit(Request("a", PROMPT, params, timeout=5.0))
    engine.submit(Request("b", PROMPT, params))
    engine.step()
    clock.now = 5.0
    [late] = engine.step()
    assert (late.request_id, late.finish) == ("a", "error")
    assert isinstance(late.error, DeadlineError)
    assert engine.has_work()
    engine.abort("b")
    assert not engine.has_work()


def test_a_timeout_of_one_that_has_ended_does_nothing():
    clock = Clock()
    engine = engine_of(clock=clock)
    ask(engine, "a", timeout=1.0)
    clock.now = 2.0
    ask(engine, "b")


def test_a_full_queue_says_when_to_come_again():
    engine = Engine(fake_executor(config=CONFIG), Limits(6, 1, 24, max_waiting=2))
    for id_ in "ab":
        engine.check_room(1)
        engine.submit(Request(id_, PROMPT, SamplingParams()))
    with pytest.raises(OverloadedError, match="2 requests wait and at most 2") as caught:
        engine.check_room(1)
    assert caught.value.retry_after >= 1


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9))
def test_common_prefix(a, b):
    size = common_prefix(tuple(a), tuple(b))
    assert a[:size] == b[:size]
    assert size == min(len(a), len(b)) or a[size] != b[size]


SHARED = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=14)


@settings(max_examples=120, deadline=None)
@given(st.lists(SHARED, min_size=2, max_size=8), st.sampled_from([(None,), (None, 5), (3,)]),
       st.integers(7, 12))  # fmt: skip
def test_any_mix_of_shared_prompts_answers_as_alone(prompts, windows, blocks):
    engine = engine_of(windows, blocks)
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=1, ignore_eos=True, n=2)
    requests = [Request(str(i), tuple(p), params, tenant=str(i % 2), priority=i % 3)
                for i, p in enumerate(prompts)]  # fmt: skip
    found: dict[tuple[str, int], list[int]] = {}
    pending = list(requests)
    while pending or engine.has_work():
        if pending:
            engine.submit(pending.pop(0))
        for output in engine.step():
            found.setdefault((output.request_id, output.choice), []).extend(output.tokens)
        engine.check()
    model: FakeModel = engine.executor.model
    assert found == {(r.id, c): model.answer(r, c) for r in requests for c in range(2)}
    pool = engine.scheduler.pool
    assert [group.free for group in pool.groups] == [blocks] * len(windows)


def peak_blocks(engine: Engine, prompt: tuple[int, ...]) -> int:
    """Blocks held at most while 64 requests with a token of their own behind it run together."""
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    engine.submit(Request("first", prompt, params))
    while engine.has_work():
        engine.step()
    for i in range(64):
        engine.submit(Request(str(i), (*prompt, i % 6), params))
    [pool] = engine.scheduler.pool.groups
    peak = 0
    while engine.has_work():
        engine.step()
        engine.check()
        if engine.scheduler.running == 64:
            peak = max(peak, pool.n_blocks - pool.free)
    return peak


def test_64_requests_hold_a_shared_prefix_once():
    config = RuntimeConfig(max_tokens=128, max_seqs=64, context=64, block_size=4)
    engine = Engine(fake_executor(kv_blocks=200, config=config), pace=Pace.fixed(128))
    assert peak_blocks(engine, PROMPT * 4) == 10 + 64


def test_64_requests_hold_a_shared_prefix_once_natively():
    config = RuntimeConfig(max_tokens=128, max_seqs=64, context=128, kv_tokens=2048, threads=2)
    engine = Engine(load_native(llama_like(), config), pace=Pace.fixed(128))
    assert peak_blocks(engine, PROMPT * 8) == 5 + 64
    engine.executor.close()
