"""Policy of the scheduler alone, step by step. What it adds up to is in test_engine.py."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.backends.base import StepResult
from octavo.core.errors import InternalError, RequestError
from octavo.engine.blocks import KvPool
from octavo.engine.request import Output, Request, SamplingParams
from octavo.engine.scheduler import Limits, Scheduler
from octavo.engine.sequence import StepPlan
from support.fakes import layout_of

VOCAB = 100


def scheduler_of(
    *, max_tokens: int = 8, max_seqs: int = 4, context: int = 32, blocks: int = 64
) -> Scheduler:
    pool = KvPool(layout_of((None,), 4), (blocks,), -(-context // 4))
    return Scheduler(pool, Limits(max_tokens, max_seqs, context), VOCAB)


def request(id_: str, size: int, **params: object) -> Request:
    return Request(id_, tuple(range(1, size + 1)), SamplingParams(**params))


def shape(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(c.sequence.request.id, c.start, c.size) for c in plan.chunks]


def run(scheduler: Scheduler, token: int = 50) -> list[tuple[str, int, int]]:
    """One step in which every sampled token is `token`."""
    plan = scheduler.schedule()
    n = sum(chunk.samples + len(chunk.scored) for chunk in plan.chunks)
    zeros = np.zeros((n, 20), np.float32)
    tokens = np.full(n, token, np.int32)
    result = StepResult(n, tokens, tokens, zeros[:, 0], zeros.astype(np.int32), zeros)
    laid = shape(plan)
    scheduler.commit(plan, result)
    scheduler.check()
    return laid


def test_a_long_prompt_is_computed_in_chunks_then_decoded():
    scheduler = scheduler_of()
    scheduler.submit(request("a", 19, max_tokens=3))
    assert [run(scheduler) for _ in range(5)] == [
        [("a", 0, 8)],
        [("a", 8, 8)],
        [("a", 16, 3)],
        [("a", 19, 1)],
        [("a", 20, 1)],
    ]
    assert not scheduler.has_work()


def test_decodes_come_first_and_never_wait_for_a_prefill():
    scheduler = scheduler_of()
    scheduler.submit(request("a", 3))
    run(scheduler)
    scheduler.submit(request("b", 20))
    assert run(scheduler) == [("a", 3, 1), ("b", 0, 7)]
    assert run(scheduler) == [("a", 4, 1), ("b", 7, 7)]
    assert run(scheduler) == [("a", 5, 1), ("b", 14, 6)]
    assert run(scheduler) == [("a", 6, 1), ("b", 20, 1)]


def test_begun_prefills_come_before_new_ones_in_order_of_arrival():
    scheduler = scheduler_of()
    for id_ in "abc":
        scheduler.submit(request(id_, 6))
    assert run(scheduler) == [("a", 0, 6), ("b", 0, 2)]
    assert run(scheduler) == [("a", 6, 1), ("b", 2, 4), ("c", 0, 3)]


def test_no_more_than_max_seqs_run():
    scheduler = scheduler_of(max_seqs=2)
    for id_ in "abc":
        scheduler.submit(request(id_, 1, max_tokens=2))
    assert run(scheduler) == [("a", 0, 1), ("b", 0, 1)]
    assert run(scheduler) == [("a", 1, 1), ("b", 1, 1)]
    assert run(scheduler) == [("c", 0, 1)]


def test_a_budget_smaller_than_max_seqs_still_lets_all_advance():
    scheduler = scheduler_of(max_tokens=2, max_seqs=4)
    for id_ in "abc":
        scheduler.submit(request(id_, 2, max_tokens=2))
    assert run(scheduler) == [("a", 0, 2)]
    assert run(scheduler) == [("a", 2, 1), ("b", 0, 1)]
    assert run(scheduler) == [("b", 1, 1), ("c", 0, 1)]  # a has finished


def test_the_first_that_does_not_fit_holds_back_the_rest():
    scheduler = scheduler_of(blocks=3, context=12)
    scheduler.submit(request("a", 8, max_tokens=1))
    scheduler.submit(request("b", 8, max_tokens=1))
    scheduler.submit(request("c", 2, max_tokens=1))
    assert run(scheduler) == [("a", 0, 8)]
    assert run(scheduler) == [("b", 0, 8)]


def test_the_youngest_gives_way_when_blocks_run_out():
    scheduler = scheduler_of(blocks=4, context=16)
    scheduler.submit(request("a", 4, max_tokens=9))
    scheduler.submit(request("b", 4, max_tokens=9))
    assert run(scheduler) == [("a", 0, 4), ("b", 0, 4)]
    for step in range(4):
        assert run(scheduler) == [("a", 4 + step, 1), ("b", 4 + step, 1)]
    assert run(scheduler) == [("a", 8, 1)]  # a's third block was b's
    assert run(scheduler) == [("a", 9, 1)]  # b needs three, one is free
    assert run(scheduler) == [("a", 10, 1)]
    assert run(scheduler) == [("a", 11, 1)]
    assert run(scheduler) == [("b", 0, 8)]  # recomputed: prompt and answer so far
    assert run(scheduler) == [("b", 8, 1)]


def test_blocks_freed_by_preemption_are_not_given_to_newcomers_at_once():
    scheduler = scheduler_of(blocks=4, context=16, max_tokens=4)
    scheduler.submit(request("a", 4, max_tokens=9))
    scheduler.submit(request("b", 4, max_tokens=9))
    assert run(scheduler) == [("a", 0, 4)]
    assert run(scheduler) == [("a", 4, 1), ("b", 0, 3)]
    for step in range(3):
        assert run(scheduler) == [("a", 5 + step, 1), ("b", 3 + step, 1)]
    assert run(scheduler) == [("a", 8, 1)]  # though a block is free that b could begin with
    assert run(scheduler) == [("a", 9, 1), ("b", 0, 3)]


def test_a_plan_forgets_a_sequence_and_gets_its_budget_back():
    scheduler = scheduler_of()
    scheduler.submit(request("a", 3))
    plan = scheduler.schedule()
    plan.remove(plan.chunks[0].sequence)
    assert (plan.chunks, plan.budget, plan.preempted) == ([], 8, 1)


def test_waiting_forks_give_way_when_nothing_runs():
    """Choices 1 and 2 hold all blocks together, and the first to write needs one of its own."""
    scheduler = scheduler_of(blocks=2, context=8, max_seqs=1)
    scheduler.submit(request("a", 7, n=3, max_tokens=1))
    assert run(scheduler) == [("a", 0, 6)]
    scheduler.abort("a", 0)
    assert run(scheduler) == [("a", 6, 1)]
    assert run(scheduler) == [("a", 0, 7)]
    assert not scheduler.has_work()


def test_choices_share_the_prompt():
    scheduler = scheduler_of(blocks=5, context=16)
    scheduler.submit(request("a", 7, n=3, max_tokens=2))
    assert run(scheduler) == [("a", 0, 6)]  # all but the last token, once
    assert scheduler.pool.groups[0].free == 3
    plan = scheduler.schedule()
    assert [(c.sequence.choice, c.start, c.size) for c in plan.chunks] == [
        (0, 6, 1),
        (1, 6, 1),
        (2, 6, 1),
    ]
    assert len(plan.copies) == 2  # the third is alone on the shared tail and writes in place
    assert scheduler.pool.groups[0].free == 1


def test_choices_of_a_one_token_prompt():
    scheduler = scheduler_of()
    scheduler.submit(request("a", 1, n=2, max_tokens=1))
    assert run(scheduler) == [("a", 0, 1), ("a", 0, 1)]
    assert not scheduler.has_work()


@pytest.mark.parametrize(
    ("params", "token", "finish", "reason"),
    [
        ({"max_tokens": 1}, 50, "length", None),
        ({"max_tokens": 5}, 50, None, None),
        ({"max_tokens": 5}, 7, "stop", 7),
        ({"max_tokens": 5, "ignore_eos": True}, 7, None, None),
        ({"max_tokens": 5, "stop_token_ids": (9,)}, 9, "stop", 9),
        ({"max_tokens": 1}, 7, "stop", 7),
    ],
)
def test_finish(params, token, finish, reason):
    scheduler = scheduler_of()
    scheduler.submit(Request("a", (1, 2), SamplingParams(**params), eos=(7,)))
    plan = scheduler.schedule()
    array = np.array([token], np.int32)
    [output] = scheduler.commit(plan, StepResult(1, array, array))
    assert output == Output("a", 0, (token,), finish=finish, stop_reason=reason)
    assert scheduler.has_work() == (finish is None)


def test_the_context_ends_an_answer():
    scheduler = scheduler_of(context=8)
    scheduler.submit(request("a", 6, max_tokens=50))
    assert [len(run(scheduler)) for _ in range(3)] == [1, 1, 0]


def test_a_prompt_beyond_the_context_names_both_numbers():
    with pytest.raises(RequestError, match=r"32 tokens.*holds 32") as caught:
        scheduler_of().submit(request("a", 32))
    assert caught.value.code == "context_length_exceeded"


def test_what_cannot_ever_fit_is_refused_at_once():
    with pytest.raises(RequestError, match="KV cache") as caught:
        scheduler_of(blocks=3).submit(request("a", 8, max_tokens=5))
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ((1, 100), {}, "prompt"),
        ((-1,), {}, "prompt"),
        ((1,), {"stop_token_ids": (100,)}, "stop_token_ids"),
        ((1,), {"logit_bias": ((100, 1.0),)}, "logit_bias"),
    ],
)
def test_ids_outside_the_vocabulary(prompt, params, param):
    with pytest.raises(RequestError, match="vocabulary has 100") as caught:
        scheduler_of().submit(Request("a", prompt, SamplingParams(**params)))
    assert caught.value.param == param


def test_ids_in_use_are_refused():
    scheduler = scheduler_of()
    scheduler.submit(request("a", 1))
    with pytest.raises(RequestError, match="in use"):
        scheduler.submit(request("a", 1))


def test_abort_ends_every_choice_born_or_not():
    scheduler = scheduler_of()
    scheduler.submit(request("a", 20, n=3))
    run(scheduler)
    outputs = scheduler.abort("a")
    assert [(o.choice, o.finish) for o in outputs] == [(0, "abort"), (1, "abort"), (2, "abort")]
    assert not scheduler.has_work()
    assert scheduler.pool.groups[0].free == 64
    assert scheduler.abort("a") == []


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("choice", [0, 1, 2])
def test_abort_of_one_choice_leaves_the_others(steps, choice):
    scheduler = scheduler_of()
    scheduler.submit(request("a", 10, n=3, max_tokens=5))
    for _ in range(steps):
        run(scheduler)
    [output] = scheduler.abort("a", choice)
    assert (output.choice, output.finish) == (choice, "abort")
    scheduler.check()
    seen = set()
    while scheduler.has_work():
        plan = scheduler.schedule()
        n = sum(chunk.samples for chunk in plan.chunks)
        tokens = np.full(n, 50, np.int32)
        seen |= {o.choice for o in scheduler.commit(plan, StepResult(n, tokens, tokens))}
    assert seen == {0, 1, 2} - {choice}


def test_a_result_of_the_wrong_length_is_our_bug():
    scheduler = scheduler_of()
    scheduler.submit(request("a", 2))
    plan = scheduler.schedule()
    tokens = np.zeros(2, np.int32)
    with pytest.raises(InternalError, match="2 entries where 1"):
        scheduler.commit(plan, StepResult(2, tokens, tokens))


def test_limits_must_allow_a_token():
    with pytest.raises(InternalError):
        Limits(0, 1, 8)
