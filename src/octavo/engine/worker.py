"""The engine's process: `python -m octavo.engine.worker FD`, started by `engine.process`.

It loads what the first message asks for, answers with what it runs, and then serves until it is
told to stop or the other side is gone. Ctrl-C in a terminal reaches the whole process group; only
the parent decides what it means, so it is ignored here.
"""

from __future__ import annotations

import importlib
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import InternalError, OctavoError, RequestError
from octavo.engine.client import EngineLoop, Inbox
from octavo.engine.constraint import Vocabulary, vocabulary_of
from octavo.engine.engine import Engine
from octavo.engine.outbox import Outbox
from octavo.engine.request import Output, Request
from octavo.engine.scheduler import Limits
from octavo.engine.store import PrefixStore, identity
from octavo.engine.wire import Abort, Failed, Load, Ready, Stop, Submit, Unpin, Wire


def load_native(
    path: str, config: dict[str, Any], max_waiting: int = 0, prefix_store: str = ""
) -> Engine:
    """An engine over the native executor for the model at a path. `prefix_store` is a directory,
    or empty for none."""
    from octavo.engine.loading import load_executor
    from octavo.io.checkpoint import open_model

    wanted = msgspec.convert(config, RuntimeConfig)
    with open_model(Path(path)) as opened:
        executor = load_executor(opened.spec, opened.source, wanted)
        end = opened.eos_ids
    got = executor.config
    limits = Limits(got.max_tokens, got.max_seqs, got.context, max_waiting)
    store = None
    if prefix_store:
        store = PrefixStore(Path(prefix_store), identity(executor, Path(path)))
    return Engine(executor, limits, vocabulary=lambda: _vocabulary(Path(path), end), store=store)


def _vocabulary(path: Path, end: Sequence[int]) -> Vocabulary:
    from octavo.io.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    return vocabulary_of(tokenizer, tuple(dict.fromkeys((*end, *tokenizer.eos_ids))))


def serve(wire: Wire, engine: Engine) -> None:
    """Until a Stop, or the parent's end."""
    loop = EngineLoop(engine)
    outbox = Outbox(wire, engine, lambda: not loop.mailbox.empty())
    prefixes = engine.prefixes
    while (message := wire.receive()) is not None and not isinstance(message, Stop):
        if isinstance(message, Submit):
            submit(loop, outbox, message.requests)
            outbox.flush()
        elif isinstance(message, Abort):
            loop.abort(message.request_id, message.choice)
        elif isinstance(message, Unpin) and prefixes is not None:
            name = message.name
            loop.call(lambda name=name: _ignore(prefixes.drop(name)))  # type: ignore[misc]
    loop.stop()
    engine.executor.close()


def submit(loop: EngineLoop, outbox: Inbox, requests: tuple[Request, ...]) -> None:
    """Start those that can be served; the others end at once with what is wrong with them."""
    served = []
    for request in requests:
        try:
            loop.engine.validate(request)
            served.append(request)
        except RequestError as error:
            choices = range(request.params.n)
            outbox.put([Output(request.id, i, (), finish="error", error=error) for i in choices])
    loop.submit(tuple(served), outbox)


def _ignore(_: object) -> None:
    pass


def _make(message: object) -> Engine:
    if not isinstance(message, Load):
        raise InternalError(f"the engine process was told {message!r} before what to load")
    module, name = message.factory.split(":")
    engine = getattr(importlib.import_module(module), name)(**message.arguments)
    if not isinstance(engine, Engine):
        raise InternalError(f"{message.factory} gave no engine")
    return engine


def main(descriptor: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wire = Wire(socket.socket(fileno=descriptor))
    try:
        engine = _make(wire.receive())
    except OctavoError as error:
        wire.send(Failed(error))
        return error.exit_status
    executor = engine.executor
    wire.send(
        Ready(
            engine.limits,
            executor.spec.vocab,
            executor.config,
            executor.receipt(),
            executor.spec.hidden,
        )
    )
    serve(wire, engine)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
