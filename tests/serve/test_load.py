from __future__ import annotations

import asyncio
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cli.main import main
from octavo.core.errors import UserError
from octavo.serve.load import Load, Sample, ServerUnderLoad, Workload, measure, quantile, report
from support.serving import Served


class Clock:
    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


def scripted(clock: Clock, *steps: tuple[float, dict[str, object]]):
    async def send(messages, output):
        for wait, event in steps:
            clock.now += wait
            yield event

    return send


def text(content: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": content}}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4,
                                  "prompt_tokens_details": {"cached_tokens": 3}}}  # fmt: skip


def test_the_first_token_counts_and_not_the_first_chunk():
    clock = Clock()
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    send = scripted(clock, (1.0, role), (2.0, text("a")), (0.5, text("bc")), (0.5, text("d")),
                    (9.0, USAGE))  # fmt: skip
    sample = asyncio.run(measure(send, [], 4, clock))
    assert sample.first == 3.0
    assert sample.gaps == [0.5, 0.5]
    assert sample.per_token == pytest.approx(1 / 3)
    assert (sample.whole, sample.text) == (4.0, "abcd")
    assert (sample.prompt_tokens, sample.cached_tokens, sample.output_tokens) == (7, 3, 4)


@pytest.mark.parametrize("event", [{"error": {"message": "too long"}}, USAGE])
def test_a_request_without_tokens_failed(event):
    clock = Clock()
    sample = asyncio.run(measure(scripted(clock, (1.0, event)), [], 4, clock))
    assert sample.error


def test_a_report_counts_the_good_and_names_the_errors():
    good = [Sample(0.0, [1.0, 1.5, 2.0], 10, 4, 3), Sample(1.0, [4.0, 5.0], 10, 0, 2)]
    found = report([*good, Sample(0.0, error="refused")], 5.0, slo_first=2000, slo_token=600)
    assert (found.completed, found.failed, found.errors) == (2, 1, ("refused",))
    assert found.output_throughput == 1.0
    assert found.request_goodput == 0.2  # the second's first token took three seconds
    assert found.ttft.mean == pytest.approx(2000)
    assert found.itl.median == pytest.approx(500)
    assert (found.total_input, found.total_cached) == (20, 4)


def test_a_load_that_failed_altogether_has_no_times():
    found = report([Sample(0.0, error="refused")], 5.0, slo_first=1, slo_token=1)
    assert (found.ttft, found.itl, found.completed) == (None, None, 0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_quantile_is_numpys(values, share):
    ordered = sorted(values)
    expected = float(np.quantile(ordered, share))
    # two roundings of values this large
    assert quantile(ordered, share) == pytest.approx(expected, abs=2**-52 * 4e6)


@pytest.mark.parametrize(
    "fields", [{"requests": 0}, {"rate": 0.0}, {"shared": 200}, {"rate": math.nan}, {"turns": 0}]
)
def test_a_workload_that_makes_no_sense(fields):
    with pytest.raises(UserError):
        Workload(**fields)


def test_prompts_share_what_they_should_and_repeat_with_the_seed():
    async def none(messages, output):
        yield {}

    work = Workload(requests=5, prompt=20, shared=8)
    prompts = Load(work, none).prompts()
    assert prompts == Load(work, none).prompts()
    heads = {" ".join(prompt.split()[:8]) for prompt in prompts}
    assert len(heads) == 1
    assert len(set(prompts)) == 5
    assert {len(prompt.split()) for prompt in prompts} == {20}


def test_a_load_on_a_real_server(capsys):
    served = Served(context=1024)
    try:
        with served.listening() as url:
            arguments = ["--num-prompts", "6", "--max-concurrency", "3", "--input-len", "12",
                         "--output-len", "5", "--turns", "2", "--json"]  # fmt: skip
            status = main(["bench-serve", url, *arguments])
    finally:
        served.close()
    found = json.loads(capsys.readouterr().out)
    assert (status, found["errors"]) == (0, [])
    assert (found["completed"], found["failed"]) == (12, 0)
    assert found["total_output"] == 60
    assert found["total_cached"] > 0  # second turns begin with the first


def test_no_server_there_is_one_clear_error(capsys):
    assert main(["bench-serve", "http://127.0.0.1:9"]) == 2
    assert "no server" in capsys.readouterr().err


def test_a_refusal_is_an_error_of_its_request():
    served = Served(context=64)
    try:
        with served.listening() as url:

            async def run():
                async with ServerUnderLoad(url, None, None, 10.0) as server:
                    work = Workload(requests=2, prompt=100, output=2)
                    return await Load(work, server.send).run(lambda: None)

            samples, _ = asyncio.run(run())
    finally:
        served.close()
    assert all("status 400" in sample.error for sample in samples)
