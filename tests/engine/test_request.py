from __future__ import annotations

import dataclasses
import math

import pytest

from octavo.core.errors import RequestError
from octavo.engine.request import CachePolicy, Mark, Request, SamplingParams

BAD = [
    ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", True), ("temperature", -0.1),
    ("temperature", math.nan), ("temperature", math.inf),
    ("temperature", 1e39), ("repetition_penalty", 1e-39), ("temperature", "hot"), ("top_k", -1),
    ("top_k", 2**31), ("top_p", 0.0), ("top_p", 1.01), ("min_p", -0.1), ("min_p", 1.1),
    ("repetition_penalty", 0.0), ("presence_penalty", 2.1), ("presence_penalty", -2.1),
    ("frequency_penalty", 3), ("n", 0), ("n", 129), ("seed", -1), ("seed", 2**64), ("seed", 1.0),
    ("logprobs", -1), ("logprobs", 21), ("min_tokens", -1), ("min_tokens", 257),
    ("stop", "\n"), ("stop", ("",)), ("stop", (3,)), ("stop_token_ids", [1]),
    ("stop_token_ids", (-1,)), ("logit_bias", {1: 2.0}), ("logit_bias", ((1, math.inf),)),
    ("logit_bias", ((1, 101.0),)), ("logit_bias", ((1, 1.0), (1, 2.0))), ("logit_bias", ((1,),)),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD)
def test_out_of_range_names_the_field(field, value):
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0), ("top_p", 1), ("min_p", 1.0), ("seed", 2**64 - 1), ("logprobs", 0),
     ("logprobs", 20), ("min_tokens", 256), ("n", 128), ("presence_penalty", -2),
     ("logit_bias", ((5, -100), (6, 100))), ("stop", ("a", "b"))],
)  # fmt: skip
def test_bounds_are_inclusive(field, value):
    assert getattr(SamplingParams(**{field: value}), field) == value


def test_requests_are_immutable_and_hashable():
    request = Request("a", (1, 2), SamplingParams())
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.params.top_k = 3
    assert hash(request) == hash(Request("a", (1, 2), SamplingParams()))


@pytest.mark.parametrize("prompt", [(), [1, 2]])
def test_bad_prompts(prompt):
    with pytest.raises(RequestError) as caught:
        Request("a", prompt, SamplingParams())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"priority": 1.5}, "priority"),
        ({"timeout": -1.0}, "timeout"),
        ({"cache": CachePolicy(marks=(Mark(2, 1.0),))}, "cache"),
    ],
)
def test_bad_service_fields(fields, param):
    with pytest.raises(RequestError) as caught:
        Request("a", (1,), SamplingParams(), **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(("tokens", "ttl"), [(0, 1.0), (1, 0.0), (1, -2.0)])
def test_bad_marks(tokens, ttl):
    with pytest.raises(RequestError, match="cache mark"):
        Mark(tokens, ttl)


def test_stops_join_eos_and_stop_ids():
    request = Request("a", (1,), SamplingParams(stop_token_ids=(9,)), eos=(2, 3))
    assert request.stops == {2, 3, 9}
    ignoring = SamplingParams(stop_token_ids=(9,), ignore_eos=True)
    assert Request("a", (1,), ignoring, eos=(2, 3)).stops == {9}


@pytest.mark.parametrize(
    "params",
    [{"repetition_penalty": 1.1}, {"presence_penalty": 0.5}, {"frequency_penalty": -0.5}],
)
def test_penalized(params):
    assert SamplingParams(**params).penalized
    assert not SamplingParams().penalized
