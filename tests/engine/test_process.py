from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.core.errors import OctavoError, OverloadedError, RequestError, UnavailableError
from octavo.engine.process import ProcessClient
from octavo.engine.request import CachePolicy, Mark, Request, SamplingParams
from support.fakes import FakeModel

TESTS = Path(__file__).parents[1]
LONG = SamplingParams(max_tokens=20, ignore_eos=True)


@pytest.fixture
def start(monkeypatch):
    """Clients whose child finds the fakes."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    clients = []

    def make(factory: str = "support.fakes:fake_engine", **arguments: object) -> ProcessClient:
        clients.append(ProcessClient(factory, arguments))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def request(id_: str, params: SamplingParams = LONG, size: int = 3) -> Request:
    return Request(id_, tuple(i % 5 + 1 for i in range(size)), params)


def test_answers_are_those_of_the_engine(start):
    client = start()
    assert client.wait_ready().limits.context == 24
    params = SamplingParams(max_tokens=7, n=2, temperature=1.0, ignore_eos=True)
    with client.submit([request("a", params), request("b")]) as stream:
        requests = {r.id: r for r in stream.requests}
        found: dict[tuple[str, int], list[int]] = {}
        for output in stream:
            found.setdefault((output.request_id, output.choice), []).extend(output.tokens)
    model = FakeModel(7)
    assert found == {
        ("a", 0): model.answer(requests["a"], 0, 24),
        ("a", 1): model.answer(requests["a"], 1, 24),
        ("b", 0): model.answer(requests["b"], 0, 24),
    }
    assert client.stats.prefix_queried > 0


def test_a_bad_request_gets_its_own_error_and_disturbs_none(start):
    client = start()
    client.wait_ready()
    with client.submit([request("a", size=23), request("b", size=24)]) as stream:
        ends = {o.request_id: o for o in stream if o.finish is not None}
    assert ends["a"].finish == "length"
    assert isinstance(ends["b"].error, RequestError)
    assert ends["b"].error.code == "context_length_exceeded"


def test_what_keeps_a_model_from_loading_is_said(start):
    client = start("support.fakes:broken_engine")
    with pytest.raises(UnavailableError, match="the file is damaged"):
        client.wait_ready()
    assert client.health().state == "failed"


def test_a_killed_engine_fails_what_it_had_and_comes_back(start):
    client = start(delay=0.05)
    client.wait_ready()
    before = client.health()
    stream = client.generate(request("a"))
    next(stream)
    os.kill(before.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match=r"status -9.*sent again"):
        list(stream)
    client.wait_ready()
    after = client.health()
    assert (after.state, after.restarts) == ("ready", 1)
    assert after.pid != before.pid
    with client.generate(request("b")) as stream:
        tokens = [t for output in stream for t in output.tokens]
    assert tokens == FakeModel(7).answer(request("b"), 0, 24)


def test_a_killed_engine_loses_no_pinned_prefix(start, tmp_path):
    client = start(delay=0.02, store=str(tmp_path))
    client.wait_ready()
    kept = CachePolicy(marks=(Mark(8, 60.0, "rules"),))
    stream = client.generate(replace(request("a", size=10), cache=kept))
    next(stream)  # what it pinned is on disk now
    os.kill(client.health().pid, signal.SIGKILL)
    with pytest.raises(UnavailableError):
        list(stream)
    client.wait_ready()
    with client.generate(request("b", size=10)) as stream:
        outputs = list(stream)
    assert outputs[0].cache.read == 8
    assert [t for o in outputs for t in o.tokens] == FakeModel(7).answer(
        request("b", size=10), 0, 24
    )


def test_a_submission_while_the_engine_starts_is_refused(start):
    client = start()
    client.wait_ready()
    os.kill(client.health().pid, signal.SIGSTOP)  # it takes nothing more, and is killed
    os.kill(client.health().pid, signal.SIGKILL)
    with client._changed:
        client._changed.wait_for(lambda: client._state == "starting", timeout=30)
        with pytest.raises(UnavailableError, match="status -9"):
            client.generate(request("a"))


def test_abort_ends_a_stream(start):
    client = start(delay=0.02)
    client.wait_ready()
    stream = client.generate(request("a"))
    next(stream)
    client.abort("a")
    assert [o.finish for o in stream][-1] == "abort"


def test_a_full_queue_is_refused_by_the_parent(start, monkeypatch):
    client = start(delay=0.05)
    ready = client.wait_ready()
    limits = type(ready.limits)(6, 1, 24, max_waiting=1)
    client.ready = type(ready)(limits, ready.vocab, ready.config, ready.receipt)
    streams = [client.generate(request("a"))]
    with pytest.raises(OverloadedError, match="1 requests wait"):
        client.generate(request("b"))
    for stream in streams:
        stream.close()


def test_a_closed_client_says_so(start):
    client = start(delay=0.05)
    client.wait_ready()
    stream = client.generate(request("a"))
    client.close()
    with pytest.raises(OctavoError, match="closed"):
        list(stream)
    with pytest.raises(UnavailableError, match="closed"):
        client.generate(request("b"))
    client.close()
