"""A response of server-sent events. What every event costs is what this is about.

Starlette's own gives each stream a task group, and the silence after which a comment is due would
give each event a task and a timer; here a stream has three tasks, and an event none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import Response

from octavo.serve.wording import KEEP_ALIVE

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """Sends `events`, which must not raise, until the client hangs up; then they are closed. After
    `keep_alive` seconds of silence comes a comment."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], keep_alive: float) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._source, self._keep_alive = events, keep_alive
        self._spoke = False  # since the last look

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        work = asyncio.ensure_future(self._speak(send))
        others = [asyncio.ensure_future(self._comment(send)), asyncio.ensure_future(gone(receive))]
        try:
            await asyncio.wait({work, others[1]}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, *others):
                task.cancel()
            for task in (work, *others):
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _speak(self, send: Send) -> None:
        async with contextlib.aclosing(self._source) as events:
            async for data in events:
                self._spoke = True
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _comment(self, send: Send) -> None:
        """Whole chunks are written at a time, so that a comment never falls into an event."""
        while True:
            self._spoke = False
            await asyncio.sleep(self._keep_alive)
            if not self._spoke:
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})


async def gone(receive: Receive) -> None:
    """Until the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
