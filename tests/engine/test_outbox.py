"""What waits for the next step's outputs, for how long, and what never does."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from octavo.core.errors import OctavoError, RequestError
from octavo.engine.outbox import SECONDS, Outbox
from octavo.engine.request import CacheUse, Output, TokenLogprobs
from octavo.engine.stats import EngineStats, LastStep
from octavo.engine.wire import Failed, Outputs

DECODES, PREFILL = LastStep(2, 2, 0.001), LastStep(40, 2, 0.2)


@dataclass
class Situation:
    """A wire, an engine and a clock, as far as an outbox looks at them."""

    last: LastStep = DECODES
    waiting: int = 0
    mail: bool = False
    now: float = 100.0
    sent: list[Outputs | Failed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outbox = Outbox(self, self, lambda: self.mail, lambda: self.now)  # type: ignore[arg-type]

    def send(self, message: Outputs | Failed) -> None:
        self.sent.append(message)

    def stats(self) -> EngineStats:
        return EngineStats(running=2)

    def step(self, seconds: float, *outputs: Output) -> int:
        """A step that took so long and brought these; how many messages there are then."""
        self.now += seconds
        self.outbox.put(list(outputs or (plain(),)))
        return len(self.sent)


def plain(token: int = 7) -> Output:
    return Output("a", 0, (token,))


def test_steps_share_a_message_as_long_as_the_first_one_waits_10_ms():
    """Steps of 3 ms: after the fourth the first output has waited for 9, and would for 12."""
    at = Situation()
    assert [at.step(0.003, plain(i)) for i in range(8)] == [0, 0, 0, 1, 1, 1, 1, 2]
    tokens = [[o.tokens[0] for o in m.outputs] for m in at.sent if isinstance(m, Outputs)]
    assert tokens == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert at.sent[0].stats.running == 2


def test_figures_go_along_every_100_ms_and_when_something_ends():
    at = Situation()
    for _ in range(12):
        at.step(1 / 32)
    told = [message.stats is not None for message in at.sent]
    assert told == [True, False, False, False] * 3
    at.step(0.02, Output("a", 0, (7,), finish="stop"))
    assert at.sent[-1].stats == EngineStats(running=2)


def test_long_steps_have_a_message_each():
    at = Situation()
    assert [at.step(1.01 * SECONDS) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    "urgent",
    [
        Output("a", 0, (7,), finish="stop"),
        Output("a", 0, (), finish="error", error=RequestError("too long")),
        Output("a", 0, (7,), cache=CacheUse(0, 0, "first")),  # with a choice's first token
        Output("a", 0, (), prompt_logprobs=(TokenLogprobs(1, -1.0),)),
    ],
)
def test_first_tokens_and_ends_take_along_what_waits(urgent):
    at = Situation()
    at.step(0.001)
    assert at.step(0.001, plain(), urgent) == 1
    assert len(at.sent[0].outputs) == 3


@pytest.mark.parametrize("why", [{"last": PREFILL}, {"waiting": 1}, {"mail": True}])
def test_nothing_waits_for_a_prompt(why):
    at = Situation(**why)
    assert [at.step(0.001) for _ in range(2)] == [1, 2]


def test_a_new_request_sends_what_waits():
    at = Situation()
    at.step(0.001)
    at.outbox.flush()
    at.outbox.flush()
    assert len(at.sent) == 1


def test_a_failure_comes_behind_what_waits():
    at = Situation()
    at.step(0.001)
    at.outbox.put(OctavoError("broken"))
    assert [type(message) for message in at.sent] == [Outputs, Failed]


def test_a_parent_that_is_gone_is_no_error():
    class Broken(Situation):
        def send(self, message: Outputs | Failed) -> None:
            raise OSError("broken pipe")

    assert Broken().step(1.0) == 0
