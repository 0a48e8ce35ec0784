"""`octavo chat`: a conversation on the terminal, or line by line from a pipe."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, cast

import click

from octavo.cli.options import (
    collapsed_option,
    json_option,
    runtime_config,
    runtime_options,
    sampling_options,
    sampling_params,
)
from octavo.cli.output import warn
from octavo.cli.prefix import keep_prefix, prefix_option, read_prefix, store_directory
from octavo.core.errors import RequestError

if TYPE_CHECKING:
    from octavo.api import LLM
    from octavo.engine.request import SamplingParams

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."
_PROMPT = "> "


class _Delta(Protocol):
    @property
    def text(self) -> str: ...

    @property
    def finish_reason(self) -> str | None: ...


class _Deltas(Protocol):
    def __iter__(self) -> Iterator[_Delta]: ...

    def close(self) -> None: ...


class _Model(Protocol):
    """What a conversation needs of `octavo.LLM`."""

    def chat(
        self, messages: list[dict[str, str]], params: SamplingParams, stream: bool
    ) -> _Deltas: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer; finish_reason is "abort" when Ctrl-C stopped it."""

    turn: int
    text: str
    finish_reason: str | None
    seconds: float


@dataclass(slots=True)
class _Conversation:
    """Messages so far. A turn that failed or gave nothing leaves no trace."""

    model: _Model
    params: SamplingParams
    system: str | None
    messages: list[dict[str, str]] = field(default_factory=list)
    turn: int = 0

    def reset(self) -> None:
        self.messages.clear()

    def answer(self, question: str, show: Callable[[str], None]) -> _Answer:
        self.turn += 1
        asked = [*self._opening(), *self.messages, _message("user", question)]
        start = time.perf_counter()
        text, reason = _streamed(lambda: self.model.chat(asked, self.params, stream=True), show)
        if text:
            self.messages += [_message("user", question), _message("assistant", text)]
        return _Answer(self.turn, text, reason, time.perf_counter() - start)

    def _opening(self) -> list[dict[str, str]]:
        return [] if self.system is None else [_message("system", self.system)]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@click.command()
@click.argument("model")
@click.option("--system", default=None, help="The system message, in force until the end.")
@prefix_option
@runtime_options
@collapsed_option
@sampling_options
@json_option
def command(model: str, system: str | None, prefix_file: Path | None, as_json: bool) -> None:
    """Talk with MODEL (a directory, a .gguf file, a hub id or a demo model).

    Reads one message a line; with --json prints one JSON object an answer.
    """
    from octavo.api import LLM

    config = runtime_config()
    params = sampling_params()
    store = None if prefix_file is None else store_directory()
    if prefix_file is not None:
        system = "\n\n".join(filter(None, (system, read_prefix(prefix_file))))
    loaded = LLM(model, format=config.format, config=config, prefix_store=store)
    with closing(cast(_Model, loaded)) as llm:
        warn(loaded.receipt().notes)
        if prefix_file is not None:
            keep_prefix(
                loaded, prefix_file, lambda said: _rendered(loaded, str(system), said), "chat"
            )
        if sys.stdin.isatty() and not as_json:
            click.echo(_HELP, err=True)
        _talk(_Conversation(llm, params, system), as_json)


def _rendered(llm: LLM, system: str, said: str) -> Sequence[int]:
    from octavo.io.chat_template import render_chat

    return render_chat(llm.tokenizer, [_message("system", system), _message("user", said)])


def _talk(conversation: _Conversation, as_json: bool) -> None:
    for line in _lines():
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
            click.echo("The conversation is forgotten.", err=True)
        elif line.startswith("/"):
            click.echo(f"{line.split()[0]} is no command here: {_HELP}", err=True)
        elif line:
            _one_turn(conversation, line, as_json)


def _one_turn(conversation: _Conversation, question: str, as_json: bool) -> None:
    try:
        answer = conversation.answer(question, (lambda _: None) if as_json else _show)
    except RequestError as error:
        # The conversation goes on: the next message, or one after /reset, may well fit.
        _say_error(error, as_json)
        return
    if as_json:
        _emit_line({name: getattr(answer, name) for name in _Answer.__slots__})
    else:
        click.echo(" [stopped]" if answer.finish_reason == "abort" else "")


def _say_error(error: RequestError, as_json: bool) -> None:
    if as_json:
        _emit_line({"error": {"type": type(error).__name__, "message": str(error)}})
    click.echo(f"octavo: error: {error} (/reset starts anew)", err=True)


def _emit_line(value: Mapping[str, Any]) -> None:
    # One line an object: a reader at the other end of a pipe gets each answer when it is there.
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
    sys.stdout.flush()


def _streamed(ask: Callable[[], _Deltas], show: Callable[[str], None]) -> tuple[str, str | None]:
    """The whole text, shown as it comes, and why it ended ("abort" after Ctrl-C)."""
    parts: list[str] = []
    reason: str | None = None
    with _interruptible() as interrupt:
        try:
            with closing(ask()) as deltas:
                for delta in deltas:
                    with interrupt.held():
                        parts.append(delta.text)
                        show(delta.text)
                        reason = delta.finish_reason or reason
        except KeyboardInterrupt:
            if interrupt.count > 1:
                raise
            reason = reason or "abort"
    return "".join(parts), reason


def _show(text: str) -> None:
    click.echo(text, nl=False)
    sys.stdout.flush()


class _Interrupt:
    """Ctrl-C during an answer. It raises at once, as the model may be busy with a long prefill, but
    for text that is being shown: that is finished first. `count`: how often it came."""

    def __init__(self) -> None:
        self.count = 0
        self._held = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 or not self._held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.count:
            raise KeyboardInterrupt


@contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    """The first Ctrl-C stops the answer, a second one the program."""
    interrupt = _Interrupt()
    previous = signal.signal(signal.SIGINT, interrupt.handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


def _lines() -> Iterator[str]:
    """Messages, until the end of the input. Ctrl-C at the prompt only drops the line."""
    interactive = sys.stdin.isatty()
    if interactive:
        importlib.import_module("readline")  # for its effect: input() then edits and recalls lines
    while True:
        try:
            line = _read(interactive).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            click.echo(f"\n{_HELP}", err=True)
            continue
        yield line


def _read(interactive: bool) -> str:
    if interactive:
        return input(_PROMPT)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
