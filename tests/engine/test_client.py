from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from octavo.backends.base import RuntimeConfig, StepBatch, StepResult
from octavo.core.errors import InternalError, OctavoError, RequestError
from octavo.engine.client import InProcessClient, _Stop
from octavo.engine.engine import Engine
from octavo.engine.request import Output, Request, SamplingParams
from support.fakes import FakeExecutor, fake_executor

LONG = SamplingParams(max_tokens=20, ignore_eos=True)


def request(id_: str, params: SamplingParams = LONG) -> Request:
    return Request(id_, (1, 2, 3), params)


class GatedExecutor(FakeExecutor):
    """Waits before every step until the test lets it go."""

    def __init__(self) -> None:
        config = RuntimeConfig(max_tokens=6, max_seqs=3, context=24, block_size=4)
        model = fake_executor().model
        super().__init__(model, config, (32,))
        self.gate = threading.Semaphore(0)

    def step(self, batch: StepBatch) -> StepResult:
        self.gate.acquire()
        return super().step(batch)


@pytest.fixture
def gated():
    client = InProcessClient(Engine(GatedExecutor()))
    yield client
    open_gate(client)
    client.close()


def open_gate(client: InProcessClient, steps: int = 10_000) -> None:
    client._engine.executor.gate.release(steps)


def test_a_stream_ends_with_its_last_choice():
    client = InProcessClient(Engine(fake_executor()))
    params = SamplingParams(max_tokens=5, ignore_eos=True, n=2, temperature=1.0, seed=1)
    outputs = list(client.submit([request("a", params), request("b")]))
    for id_, choice in (("a", 0), ("a", 1), ("b", 0)):
        mine = [o for o in outputs if (o.request_id, o.choice) == (id_, choice)]
        assert [o.finish for o in mine][-1] == "length"
        assert {o.finish for o in mine[:-1]} == {None}
    client.close()


def test_requests_submitted_together_share_the_first_step(gated):
    with gated.submit([request("a"), request("b")]) as stream:
        open_gate(gated)
        next(stream)
        assert gated._engine.executor.seqs[0] == 2


def test_a_bad_request_starts_none(gated):
    with pytest.raises(RequestError):
        gated.submit([request("a"), Request("b", (1,) * 24, LONG)])
    assert not gated._engine.has_work()


def test_closing_a_stream_aborts_between_two_steps(gated):
    stream = gated.generate(request("a"))
    open_gate(gated, 1)
    assert isinstance(next(stream), Output)
    stream.close()
    open_gate(gated)
    list(gated.generate(request("b")))
    engine = gated._engine
    assert engine.scheduler.pool.groups[0].free == 32
    assert len(engine.executor.rows) <= 3 + 20


def test_collecting_a_stream_aborts_its_requests(gated):
    stream = gated.generate(request("a"))
    open_gate(gated, 1)
    next(stream)
    del stream
    gc.collect()
    open_gate(gated)
    list(gated.generate(request("b")))
    assert not gated._engine.has_work()


def test_abort_from_another_thread_ends_the_stream(gated):
    stream = gated.generate(request("a"))
    open_gate(gated, 1)
    next(stream)
    aborter = threading.Thread(target=gated.abort, args=("a",))
    aborter.start()
    aborter.join()
    open_gate(gated)
    assert [output.finish for output in stream][-1] == "abort"


def test_an_id_in_use_is_refused_on_the_second_stream_alone(gated):
    first = gated.generate(request("a"))
    second = gated.generate(request("a", SamplingParams(max_tokens=3, n=2)))
    open_gate(gated)
    refused = list(second)
    assert [(o.choice, o.finish) for o in refused] == [(0, "error"), (1, "error")]
    assert "in use" in str(refused[0].error)
    assert [o.finish for o in first][-1] == "length"


def test_a_bug_in_the_engine_reaches_every_caller():
    executor = fake_executor()
    client = InProcessClient(Engine(executor))
    executor.fail_with = ZeroDivisionError("oops")
    with pytest.raises(InternalError, match=r"ZeroDivisionError: oops") as caught:
        list(client.generate(request("a")))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(InternalError, match="oops"):
        client.generate(request("b"))
    client.close()


def test_close_ends_open_streams(gated):
    """The stop message lies there before the gate opens: the step that runs is the last."""
    stream = gated.generate(request("a"))
    open_gate(gated, 1)
    next(stream)
    gated._loop.mailbox.put(_Stop())
    open_gate(gated)
    gated.close()
    with pytest.raises(OctavoError, match="closed"):
        list(stream)
    with pytest.raises(OctavoError, match="closed"):
        gated.generate(request("b"))


def test_a_client_that_is_dropped_stops_its_thread():
    client = InProcessClient(Engine(fake_executor()))
    list(client.generate(request("a")))
    thread = client._loop._thread
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_the_thread_starts_with_the_first_request():
    client = InProcessClient(Engine(fake_executor()))
    assert client._loop._thread is None
    client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_gets_one_clear_error(gated):
    gated._loop._pid += 1  # what a child would see
    with pytest.raises(OctavoError, match="fork"):
        gated.generate(request("a"))
    gated._loop._pid -= 1


FORKED = """
import os, signal, sys, threading
sys.path.insert(0, {tests!r})
from engine.test_client import LongExecutor, request
from octavo.engine.client import InProcessClient
from octavo.engine.engine import Engine

client = InProcessClient(Engine(LongExecutor()))
stream = client.generate(request("a"))
executor = client._engine.executor
executor.begun.acquire()
held, forked = threading.Event(), threading.Event()

def hold():  # as any thread may at the moment of a fork
    with client._loop._lock, client._engine._lock:
        held.set()
        forked.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
forked.set()
if child == 0:
    signal.alarm(30)  # a failing test leaves no process behind
    stream.close()
    client.close()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_leaves_its_copy_alone():
    """Neither waits for a lock that nobody will free, nor ends the parent's step."""
    code = FORKED.format(tests=str(Path(__file__).parents[1]))
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert found.stdout == "7\n", found.stderr


class LongExecutor(FakeExecutor):
    """Every step lasts until it is cancelled or the test lets all of them end."""

    def __init__(self) -> None:
        config = RuntimeConfig(max_tokens=6, max_seqs=3, context=24, block_size=4)
        super().__init__(fake_executor().model, config, (32,))
        self.begun = threading.Semaphore(0)
        self.goes_on = threading.Event()  # set by cancel, too

    def step(self, batch: StepBatch) -> StepResult:
        self.begun.release()
        assert self.goes_on.wait(60), "nobody ended the step"
        return super().step(batch)

    def cancel(self) -> None:
        super().cancel()
        self.goes_on.set()


@pytest.fixture
def long():
    executor = LongExecutor()
    client = InProcessClient(Engine(executor))
    yield client
    client.close()


def test_closing_the_only_stream_ends_the_step_that_runs(long):
    executor = long._engine.executor
    stream = long.generate(request("a"))
    assert executor.begun.acquire(timeout=60)
    stream.close()
    [*_, last] = long.generate(request("b"))  # goes_on stays set
    assert last.finish == "length"
    assert executor.model.answer(request("b")) == long_answer(long, "c")
    assert not long._engine.has_work()
    assert not executor.cancelled.is_set()


def long_answer(client: InProcessClient, id_: str) -> list[int]:
    return [token for output in client.generate(request(id_)) for token in output.tokens]


def test_a_step_that_others_need_is_not_cancelled(long):
    executor = long._engine.executor
    first = long.submit([request("a"), request("b")])
    assert executor.begun.acquire(timeout=60)
    long.abort("a")
    assert not executor.cancelled.is_set()
    executor.goes_on.set()
    tokens = [t for output in first if output.request_id == "b" for t in output.tokens]
    assert tokens == executor.model.answer(request("b"))


def test_closing_a_stream_of_several_requests_ends_their_step(long):
    executor = long._engine.executor
    stream = long.submit([request("a"), request("b")])
    assert executor.begun.acquire(timeout=60)
    stream.close()
    assert executor.goes_on.wait(60)
    assert executor.model.answer(request("c")) == long_answer(long, "c")


def test_close_ends_the_step_that_runs_and_leaves_the_executor_usable(long):
    executor = long._engine.executor
    stream = long.generate(request("a"))
    assert executor.begun.acquire(timeout=60)
    long.close()
    with pytest.raises(OctavoError, match="closed"):
        next(stream)
    assert not long._loop._thread.is_alive()
    assert not executor.cancelled.is_set()


def test_ctrl_c_while_waiting_aborts_even_if_the_stream_is_kept(long, monkeypatch):
    executor = long._engine.executor
    stream = long.generate(request("a"))
    assert executor.begun.acquire(timeout=60)
    monkeypatch.setattr(stream, "_inbox", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert executor.goes_on.is_set()
    assert list(stream) == []


class Interrupted:
    def get(self) -> object:
        raise KeyboardInterrupt


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from support.fakes import fake_executor
from octavo.engine.client import InProcessClient
from octavo.engine.engine import Engine
from octavo.engine.request import Request, SamplingParams

class Interrupting(type(fake_executor())):
    def step(self, batch):
        if len(self.rows) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(batch)

executor = fake_executor()
executor.__class__ = Interrupting
client = InProcessClient(Engine(executor))
params = SamplingParams(max_tokens=20, ignore_eos=True)
try:
    with client.generate(Request("a", (1,), params)) as stream:
        for _ in stream:
            pass
        signal.pause()  # the interrupt may also land after the last token
except KeyboardInterrupt:
    print("interrupted")
print([o.finish for o in client.generate(Request("b", (1,), params))][-1])
client._engine.check()
print(client._engine.scheduler.pool.groups[0].free)
"""


def test_sigint_ends_the_caller_and_never_the_engine():
    """The program catches Ctrl-C, and the same engine answers the next request."""
    code = INTERRUPTED.format(tests=str(Path(__file__).parents[1]))
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.stdout.split() == ["interrupted", "length", "32"], found.stderr
    assert found.stderr == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
