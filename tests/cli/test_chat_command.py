from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

import octavo.api
from octavo.backends.base import Receipt
from octavo.cli.chat import _streamed, command
from octavo.core.errors import RequestError
from octavo.engine.request import SamplingParams
from support import cli_models
from support.cli_models import interrupted_barrier
from support.fakes import FakeExecutor


@dataclass(frozen=True)
class Delta:
    text: str
    finish_reason: str | None = None


@dataclass
class FakeLLM:
    """Answers with the number of messages; "stop me" is interrupted, "too long" refused."""

    model: str
    format: str
    config: Any
    asked: list[list[dict[str, str]]] = field(default_factory=list)
    params: SamplingParams | None = None
    closed: int = 0
    model_closed: bool = False

    def receipt(self) -> Receipt:
        notes = ("context 8192 of 32768", "WARNING: KV int4 collapses this model")
        return Receipt("fake", "python", 1, "int4", 0, 0, (), requantized=False, notes=notes)

    def close(self) -> None:
        self.model_closed = True

    def chat(
        self, messages: list[dict[str, str]], params: SamplingParams, stream: bool
    ) -> Iterator[Delta]:
        assert stream
        self.asked.append(messages)
        self.params = params
        return self._deltas(messages)

    def _deltas(self, messages: list[dict[str, str]]) -> Iterator[Delta]:
        try:
            yield from self._answer(messages)
        finally:
            self.closed += 1

    def _answer(self, messages: list[dict[str, str]]) -> Iterator[Delta]:
        question = messages[-1]["content"]
        if question == "too long":
            raise RequestError("the prompt has 9 tokens, the context 8", param="messages")
        yield Delta(f"answer {len(messages)}")
        if question == "stop me":
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                yield Delta(" more")
        yield Delta("é", "stop")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    made: list[FakeLLM] = []

    def make(
        model: str, *, format: str = "source", config: Any = None, prefix_store: Any = None
    ) -> FakeLLM:
        del prefix_store
        made.append(FakeLLM(model, format, config))
        return made[-1]

    api = ModuleType("octavo.api")
    api.LLM = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "octavo.api", api)
    return made


def talk(*lines: str, options: tuple[str, ...] = ()) -> Result:
    text = "".join(f"{line}\n" for line in lines)
    return CliRunner().invoke(command, ["m", *options], input=text, catch_exceptions=False)


def contents(messages: list[dict[str, str]]) -> list[str]:
    return [f"{message['role']}: {message['content']}" for message in messages]


def test_turns_build_on_each_other(models: list[FakeLLM]) -> None:
    result = talk("one", "", "two")
    assert result.exit_code == 0
    assert result.stdout == "answer 1é\nanswer 3é\n"
    assert result.stderr.startswith("WARNING: KV int4 collapses this model\n")
    assert contents(models[0].asked[1]) == ["user: one", "assistant: answer 1é", "user: two"]


def test_reset_forgets_but_keeps_the_system_message(models: list[FakeLLM]) -> None:
    result = talk("one", "/reset", "two", options=("--system", "Be kind."))
    assert "forgotten" in result.stderr
    assert contents(models[0].asked[1]) == ["system: Be kind.", "user: two"]


def test_exit_and_unknown_commands(models: list[FakeLLM]) -> None:
    result = talk("/help", "/exit", "not asked")
    assert result.exit_code == 0
    assert models[0].asked == []
    assert "/help is no command here: /reset" in result.stderr


def test_an_interrupt_stops_the_answer_and_not_the_program(models: list[FakeLLM]) -> None:
    before = signal.getsignal(signal.SIGINT)
    result = talk("stop me", "go on")
    assert result.exit_code == 0
    assert result.stdout == "answer 1 [stopped]\nanswer 3é\n"
    assert models[0].closed == 2
    assert contents(models[0].asked[1])[1] == "assistant: answer 1"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_while_text_is_shown_lets_it_be_finished() -> None:
    shown: list[str] = []

    def show(text: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        shown.append(text)

    def ask() -> Iterator[Delta]:
        yield Delta("one")
        yield Delta("two")

    assert _streamed(ask, show) == ("one", "abort")
    assert shown == ["one"]


def test_a_second_interrupt_ends_the_program() -> None:
    before = signal.getsignal(signal.SIGINT)

    def ask() -> Iterator[Delta]:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            yield Delta("never")
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        _streamed(ask, lambda text: None)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_ends_a_step_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real library: the executor waits to be cancelled, and then answers on."""
    monkeypatch.setattr(octavo.api, "LLM", cli_models.FakeLLM(chat_template="{{ messages }}"))
    monkeypatch.setattr("octavo.io.chat_template.render_chat", lambda *_: [1, 2, 3])
    monkeypatch.setattr(FakeExecutor, "_pass_barrier", interrupted_barrier())
    result = talk("one", "two", options=("--json", "--max-tokens", "3", "--ignore-eos"))
    assert result.exit_code == 0
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["text"], first["finish_reason"]) == ("", "abort")
    assert second["finish_reason"] == "length"


def test_the_model_is_closed_in_the_end(models: list[FakeLLM]) -> None:
    talk("one")
    assert models[0].model_closed


def test_a_refused_message_leaves_no_trace(models: list[FakeLLM]) -> None:
    result = talk("one", "too long", "two")
    assert result.exit_code == 0
    assert "9 tokens, the context 8" in result.stderr
    assert contents(models[0].asked[2]) == ["user: one", "assistant: answer 1é", "user: two"]


def test_json_is_one_object_an_answer(models: list[FakeLLM]) -> None:
    result = talk("one", "too long", "stop me", options=("--json",))
    first, refused, stopped = map(json.loads, result.stdout.splitlines())
    assert (first["turn"], first["text"], first["finish_reason"]) == (1, "answer 1é", "stop")
    assert first["seconds"] >= 0
    assert refused["error"]["type"] == "RequestError"
    assert (stopped["turn"], stopped["finish_reason"]) == (3, "abort")


def test_options_reach_the_model(models: list[FakeLLM]) -> None:
    options = ("--temperature", "0.5", "--top-k", "7", "--seed", "3", "--format", "int4_g32")
    talk("one", options=options)
    params = models[0].params
    assert params is not None
    assert (params.temperature, params.top_k, params.seed) == (0.5, 7, 3)
    assert (models[0].model, models[0].format) == ("m", "int4_g32")
    assert models[0].config.format == "int4_g32"
