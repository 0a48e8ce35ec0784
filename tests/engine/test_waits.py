"""A slow prefix store keeps those waiting who need it, and nobody else."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import DeadlineError, RequestError
from octavo.engine.client import InProcessClient
from octavo.engine.engine import Engine
from octavo.engine.request import CachePolicy, Mark, Output, Request, SamplingParams
from octavo.engine.store import PrefixStore
from support.fakes import fake_executor

CONFIG = RuntimeConfig(max_tokens=8, max_seqs=4, context=24, block_size=4)
PROMPT = (1, 2, 3, 4, 5, 1, 2, 3, 4, 5)
OTHER = (6, 5, 4)
KEPT = CachePolicy(marks=(Mark(8, 60.0, "rules"),))
PARAMS = SamplingParams(max_tokens=3, ignore_eos=True)


class SlowStore(PrefixStore):
    """Reads and writes only once its gate is open. `jobs`: what it was asked for."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "mine" * 8)
        self.gate = threading.Event()
        self.jobs: list[str] = []

    def save(self, header, blocks):
        self.jobs.append("save")
        assert self.gate.wait(60)
        super().save(header, blocks)

    def load(self, entry):
        self.jobs.append("load")
        assert self.gate.wait(60)
        return super().load(entry)


class Slow:
    """An engine over a slow store, stepped as long as others have work."""

    def __init__(self, directory: Path) -> None:
        self.now = 0.0
        self.store = SlowStore(directory)
        executor = fake_executor(config=CONFIG)
        self.engine = Engine(executor, store=self.store, clock=lambda: self.now)
        self.told: dict[str, list[Output]] = {}
        self.requests: dict[str, Request] = {}

    def submit(self, id_: str, prompt=PROMPT, cache=CachePolicy(), **fields) -> None:  # noqa: B008
        request = Request(id_, prompt, fields.pop("params", PARAMS), cache=cache, **fields)
        self.requests[id_] = self.engine.submit(request)
        self.told[id_] = []

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.told[output.request_id].append(output)

    def steps(self) -> None:
        """All that the scheduler has."""
        while self.engine.scheduler.has_work():
            self.take(self.engine.step())
            self.engine.check()

    def finish(self) -> None:
        """Open the gate and run to the end."""
        self.store.gate.set()
        while self.engine.has_work():
            self.take(self.engine.step())
            self.engine.check()

    def tokens(self, id_: str) -> list[int]:
        return [token for output in self.told[id_] for token in output.tokens]

    def right(self, id_: str) -> bool:
        last = self.told[id_][-1].finish
        return last == "length" and self.tokens(id_) == self.engine.executor.model.answer(
            self.requests[id_]
        )


def stored(directory: Path) -> None:
    """Have PROMPT's first eight tokens in the store."""
    slow = Slow(directory)
    slow.submit("a", cache=KEPT)
    slow.finish()
    assert slow.right("a")


def test_a_write_holds_back_its_own_request_alone(tmp_path):
    slow = Slow(tmp_path)
    slow.submit("a", cache=KEPT)
    slow.submit("b", OTHER)
    slow.steps()
    assert slow.right("b")
    assert slow.told["a"] == []
    assert slow.engine.has_work()
    slow.submit("c", OTHER)
    slow.steps()
    assert slow.right("c")
    assert list(tmp_path.glob("*.prefix")) == []
    slow.finish()
    assert slow.right("a")
    assert len(list(tmp_path.glob("*.prefix"))) == 1


def test_nothing_is_told_before_the_write_is_durable(tmp_path):
    """Whoever has heard a token finds the prefix in another engine, whatever becomes of this."""
    slow = Slow(tmp_path)
    slow.submit("a", cache=KEPT)
    slow.store.gate.set()
    while not slow.told["a"]:
        slow.take(slow.engine.step())
    again = Slow(tmp_path)
    again.submit("a")
    again.finish()
    assert again.told["a"][0].cache.read == 8


def test_a_read_holds_back_its_own_request_alone(tmp_path):
    stored(tmp_path)
    slow = Slow(tmp_path)
    slow.submit("a")
    slow.submit("b", OTHER)
    assert slow.engine.stats().waiting == 2
    slow.steps()
    assert slow.right("b")
    assert slow.told["a"] == []
    slow.finish()
    assert slow.right("a")
    assert slow.told["a"][0].cache.read == 8
    assert slow.engine.stats().prefix_restored == 8


def test_a_prefix_is_read_once_for_all_who_begin_with_it(tmp_path):
    stored(tmp_path)
    slow = Slow(tmp_path)
    for id_ in "abc":
        slow.submit(id_, (*PROMPT, 6))
    slow.finish()
    assert slow.store.jobs == ["load"]
    assert slow.engine.stats().prefix_restored == 8
    for id_ in "abc":
        assert slow.right(id_)
        assert slow.told[id_][0].cache.read == 8


def test_a_damaged_prefix_is_computed(tmp_path):
    stored(tmp_path)
    slow = Slow(tmp_path)
    slow.submit("a")
    [path] = tmp_path.glob("*.prefix")
    path.write_bytes(path.read_bytes()[:-1])
    slow.finish()
    assert slow.right("a")
    assert slow.told["a"][0].cache.read == 0


@pytest.mark.parametrize("choice", [None, 1])
def test_who_waits_for_a_read_can_be_aborted(tmp_path, choice):
    stored(tmp_path)
    slow = Slow(tmp_path)
    slow.submit("a", params=SamplingParams(max_tokens=3, ignore_eos=True, n=2))
    aborted = slow.engine.abort("a", choice)
    assert [output.choice for output in aborted] == ([0, 1] if choice is None else [choice])
    assert {output.finish for output in aborted} == {"abort"}
    slow.finish()
    assert len(slow.told["a"]) == (0 if choice is None else 3)
    assert not slow.engine.has_work()
    slow.submit("a")
    slow.finish()
    assert slow.right("a")


def test_who_waits_for_a_write_is_told_all_when_it_is_aborted(tmp_path):
    slow = Slow(tmp_path)
    slow.submit("a", cache=KEPT)
    slow.steps()
    slow.take(slow.engine.abort("a"))
    assert slow.right("a")
    assert not slow.engine.has_work()
    slow.finish()


def test_a_timeout_ends_who_waits(tmp_path):
    stored(tmp_path)
    slow = Slow(tmp_path)
    slow.submit("a", timeout=5.0)
    slow.now = 6.0
    slow.engine.wake()
    slow.take(slow.engine.step())
    [output] = slow.told["a"]
    assert isinstance(output.error, DeadlineError)
    slow.finish()


def test_an_id_that_waits_is_in_use(tmp_path):
    stored(tmp_path)
    slow = Slow(tmp_path)
    slow.submit("a")
    with pytest.raises(RequestError, match="in use"):
        slow.engine.submit(Request("a", OTHER, PARAMS))
    slow.finish()


def test_a_dropped_prefix_does_not_come_back_from_a_write(tmp_path):
    slow = Slow(tmp_path)
    slow.submit("a", cache=KEPT)
    slow.steps()
    slow.store.gate.set()
    assert slow.engine.prefixes.drop("rules")
    slow.finish()
    assert list(tmp_path.glob("*.prefix")) == []


def test_a_client_is_served_while_another_waits_for_the_store(tmp_path):
    """The engine's thread sleeps while all there is waits: mail wakes it."""
    stored(tmp_path)
    slow = Slow(tmp_path)
    client = InProcessClient(slow.engine)
    waits = client.generate(Request("a", PROMPT, PARAMS))
    for number in range(3):
        answer = client.generate(Request(f"b{number}", OTHER, PARAMS))
        assert [output.finish for output in answer][-1] == "length"
    slow.store.gate.set()
    assert [output.finish for output in waits][-1] == "length"
    client.close()


def test_closing_does_not_wait_for_the_store(tmp_path):
    stored(tmp_path)
    slow = Slow(tmp_path)
    client = InProcessClient(slow.engine)
    waits = client.generate(Request("a", PROMPT, PARAMS))
    client.close()
    with pytest.raises(Exception, match="closed"):
        next(waits)
    slow.store.gate.set()
