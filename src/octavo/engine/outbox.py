"""What an engine's process tells its parent: the outputs of a step, or of some, in one message.

A message costs both processes a wake-up, and the reader of a stream behind them another, on the
processors that compute: some 200 us an event over HTTP, 2 to 7 % of what 10 ms of computing bring.
So outputs wait for the next step's, for 10 ms at most. Only plain tokens wait, and only where the
next step is as short as the last: first tokens, ends and errors go at once, and nothing waits while
another prompt is computed or about to be. The figures about the engine, which take longer to read
than outputs to send (56 us between two steps, which have the caches), go along every 100 ms, and
whenever something begins or ends.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable

from octavo.core.errors import OctavoError
from octavo.engine.engine import Engine
from octavo.engine.request import Output
from octavo.engine.wire import Failed, Outputs, Wire

SECONDS = 0.01  # that an output waits, at most
STATS_SECONDS = 0.1  # from figures to figures, while nothing begins or ends


class Outbox:
    """An `Inbox` over a wire. Any thread may call any method.

    `mail` says whether the engine has messages to read before its next step; `clock` in seconds.
    """

    def __init__(
        self, wire: Wire, engine: Engine, mail: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self._wire, self._engine, self._mail, self._clock = wire, engine, mail, clock
        self._lock = threading.Lock()  # guards what follows, and the wire
        self._held: list[Output] = []
        self._since = self._last = clock()  # of the first one held; of the last put
        self._told = -math.inf  # when stats were sent

    def put(self, item: list[Output] | BaseException) -> None:
        with self._lock:
            now = self._clock()
            step, self._last = now - self._last, now
            if isinstance(item, BaseException):
                self._flush()
                if isinstance(item, OctavoError):
                    self._send(Failed(item))
                return
            if not self._held:
                self._since = now
            self._held += item
            calm = self._calm(item)
            if now + step - self._since > SECONDS or not calm:
                self._flush(news=not calm)

    def flush(self) -> None:
        """Send what waits. To be called once a new request is in the engine's mail: it was seen
        there by `put`, or what `put` kept is here."""
        with self._lock:
            self._flush()

    def _calm(self, outputs: list[Output]) -> bool:
        """Whether the next step is one of decodes, as the last, and these can wait for it."""
        last, engine = self._engine.last, self._engine
        return (
            last.rows == last.sequences
            and not engine.waiting
            and not self._mail()
            and not any(output.finish or output.cache or output.prompt_logprobs
                        for output in outputs)
        )  # fmt: skip

    def _flush(self, news: bool = True) -> None:
        if not self._held:
            return
        held, self._held = self._held, []
        stats = None
        if news or self._clock() - self._told >= STATS_SECONDS:
            stats, self._told = self._engine.stats(), self._clock()
        self._send(Outputs(held, stats))

    def _send(self, message: Outputs | Failed) -> None:
        with contextlib.suppress(OSError):  # the parent is gone; `serve` finds out too
            self._wire.send(message)
