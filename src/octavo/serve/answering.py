"""Answers as text, on the event loop, while the engine's process makes them.

The reader's thread puts outputs into an inbox; the loop takes them out. How many tokens come at
once is the engine's choice (`engine.outbox`): nothing waits here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from octavo.core.errors import OctavoError
from octavo.engine.detokenize import Detokenizer
from octavo.engine.process import ServingClient
from octavo.engine.request import CacheUse, Output, Request, TokenLogprobs
from octavo.io.tokenizer import Tokenizer


class AsyncInbox:
    """Filled from any thread, emptied on the loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._items: list[Output] = []
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: list[Output] | BaseException) -> None:
        with self._lock:
            if isinstance(item, BaseException):
                self._failure = item
            else:
                self._items += item
            waiter, self._waiter = self._waiter, None
        if waiter is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_wake, waiter)

    async def get(self) -> list[Output]:
        """What has come, at least one output. Raises what ended the engine."""
        while True:
            with self._lock:
                items, self._items = self._items, []
                if items:
                    return items
                if self._failure is not None:
                    raise self._failure
                waiter = self._waiter = self._loop.create_future()
            await waiter


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


@dataclass(slots=True)
class Piece:
    """What is new of one choice of one request. The last has a finish reason."""

    request: int  # index among the requests of the call
    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]
    finish: str | None
    stop_reason: int | str | None
    cache: CacheUse | None


Pieces = AsyncIterator[list[Piece]]


class _Choice:
    """One answer while it grows."""

    def __init__(self, request: Request, index: int, choice: int, tokenizer: Tokenizer,
                 skip_special: bool, continues: bool) -> None:  # fmt: skip
        self.request, self.index, self.choice = request, index, choice
        self._detokenizer = Detokenizer(tokenizer, request.params.stop, skip_special, continues)
        self.done = False

    def take(self, output: Output) -> Piece:
        finish: str | None = output.finish
        reason: int | str | None = output.stop_reason
        tokens = output.tokens
        text = self._detokenizer.push(tokens if reason is None else tokens[:-1])
        if finish is not None:
            text += self._detokenizer.finish()
        if self._detokenizer.stopped is not None:
            finish, reason = "stop", self._detokenizer.stopped
        self.done = finish is not None
        return Piece(self.index, self.choice, text, tokens, output.logprobs,
                     output.prompt_logprobs, finish, reason, output.cache)  # fmt: skip


class Answering:
    """The answers of one call. Leaving the `async with` ends what still runs.

    Iterating gives lists of pieces, in order. Raises the error that ended a request, and what ended
    the engine.
    """

    def __init__(
        self, client: ServingClient, requests: Sequence[Request], tokenizer: Tokenizer, *,
        skip_special: bool = True, continues: bool = False,
    ) -> None:  # fmt: skip
        self._client, self._inbox = client, AsyncInbox()
        self.requests = client.send(requests, self._inbox)
        self._choices = {
            (request.id, choice): _Choice(request, i, choice, tokenizer, skip_special, continues)
            for i, request in enumerate(self.requests)
            for choice in range(request.params.n)
        }

    async def __aenter__(self) -> Answering:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for request_id in {id_ for (id_, _), choice in self._choices.items() if not choice.done}:
            self._client.abort(request_id)

    def __aiter__(self) -> AsyncIterator[list[Piece]]:
        return self

    async def __anext__(self) -> list[Piece]:
        if all(choice.done for choice in self._choices.values()):
            raise StopAsyncIteration
        pieces = [piece for output in await self._inbox.get() for piece in self._take(output)]
        return pieces or await self.__anext__()

    def _take(self, output: Output) -> list[Piece]:
        choice = self._choices[output.request_id, output.choice]
        if choice.done:
            return []  # stopped by a string while the next step was on its way
        if output.error is not None:
            choice.done = True
            raise _fresh(output.error)
        piece = choice.take(output)
        if choice.done and output.finish is None:
            self._client.abort(output.request_id, output.choice)
        return [piece]


def _fresh(error: OctavoError) -> OctavoError:
    """Without the traceback of an earlier raise."""
    return error.with_traceback(None)
