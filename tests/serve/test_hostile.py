"""What strangers send: odd bodies, huge headers, deep nesting, and clients that stop reading."""

from __future__ import annotations

import asyncio
import json
import queue
import socket

import pytest

from octavo.engine.request import Request, SamplingParams
from support.body_fuzz import case, healthy, send
from support.serving import Served

CASES = 300  # scripts/fuzz_server.py runs ten thousand


@pytest.fixture
def served():
    made = Served()
    yield made
    made.close()


def test_any_body_gets_an_answer_or_a_reason(served):
    async def run():
        faults = []
        for number in range(CASES):
            found = case(1, number)
            status, fault = await send(served, found)
            if fault:
                faults.append((number, found.path, status, fault))
        return faults, await healthy(served)

    assert asyncio.run(run()) == ([], True)


@pytest.mark.parametrize("field", ["max_tokens", "min_tokens", "prompt", "seed", "top_k"])
@pytest.mark.parametrize("number", [2**31, 2**63, 2**64, 10**30, -(10**30)])
def test_numbers_beyond_what_travels_are_the_clients_fault(served, field, number):
    """They reach the engine's process as integers of 64 bits at most."""
    value = [100, number] if field == "prompt" else number
    body = {"prompt": "a", "max_tokens": 1, "temperature": 0, field: value}
    response = asyncio.run(served.post("/v1/completions", body))
    off = field == "seed" or (field == "top_k" and number < 0)  # a seed wraps, no top_k is off
    assert response.status_code == (200 if off else 400)
    assert asyncio.run(healthy(served))


@pytest.mark.parametrize(
    "extra",
    [
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"tools": 1, "add_generation_prompt": "x", "raise_exception": 2}},
        {"chat_template_kwargs": {"self": 1, "": 2, "a b": 3, "__class__": 4}},
        {"messages": [{"role": "user", "content": "x", "__class__": {"a": 1}}]},
        {"messages": [{"role": {"a": 1}, "content": "x"}]},
        {"messages": [{"role": "user", "content": {"a": 1}}]},
        {"messages": [{"role": "user", "content": "{{ ''.__class__.__mro__ }}{% for %}"}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": "none"}]},
        {"tools": [{"function": None}], "tool_choice": {"a": []}},
    ],
)
def test_odd_fields_reach_a_template_as_data(served, extra):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **extra}
    response = asyncio.run(served.post("/v1/chat/completions", body))
    assert response.status_code in (200, 400), response.text
    assert "Traceback" not in response.text
    assert asyncio.run(healthy(served))


def raw(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def posted(body: dict[str, object], **headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [
        "POST /v1/completions HTTP/1.1", "Host: tiny", "Content-Type: application/json",
        f"Content-Length: {len(data)}", *(f"{name}: {value}" for name, value in headers.items()),
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


STREAM = {"prompt": "a", "max_tokens": 200, "temperature": 0, "stream": True, "ignore_eos": True}


def test_a_client_that_stops_reading_disturbs_nobody_and_holds_little(served):
    """The server stops taking from its stream; the engine goes on, and ends it by its own limit."""
    with served.listening() as url, raw(url) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(posted({**STREAM, "logprobs": 20, "n": 4}))
        with raw(url) as other:
            other.sendall(posted({**STREAM, "stream": False, "max_tokens": 3}))
            assert other.recv(4096).startswith(b"HTTP/1.1 200")
        wait_idle(served)
    served.client.engine.check()


def wait_idle(served: Served) -> None:
    """Until the engine has no work; it answers a request of its own in between, in order."""
    for number in range(10_000):
        if not served.client.engine.has_work():
            return
        probe(served, number)
    raise AssertionError("the engine never rested")


def probe(served: Served, number: int) -> None:

    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    served.client.send([Request(f"probe-{number}", (100,), SamplingParams(max_tokens=1))], inbox)
    inbox.get(timeout=60)


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_half_closed_connection_frees_the_engine(served, how):
    with served.listening() as url, raw(url) as client:
        client.sendall(posted(STREAM))
        client.shutdown(how)
        wait_idle(served)
    served.client.engine.check()


def test_a_body_that_never_comes_holds_nobody_up(served):
    with served.listening() as url, raw(url) as silent, raw(url) as other:
        silent.sendall(posted(STREAM)[:-10])
        other.sendall(posted({**STREAM, "stream": False, "max_tokens": 3}))
        assert other.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_megabyte_of_headers_is_refused(served):
    """By the guard, or before it by the parser: by 4xx, or by closing what can't be parsed."""
    with served.listening() as url, raw(url) as client:
        request = posted(STREAM, **{f"X-{i}": "y" * 4000 for i in range(250)})
        try:
            client.sendall(request)
            answer = client.recv(4096)
        except OSError:  # closed while we were still sending
            answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
        with raw(url) as other:
            other.sendall(posted({**STREAM, "stream": False, "max_tokens": 3}))
            assert other.recv(4096).startswith(b"HTTP/1.1 200")
