"""Who waits for the prefix store, while everybody else's steps go on.

A request whose prompt begins with a stored prefix is queued once that has been read. A request that
has a prefix kept gets its tokens once it has been written: what it was told survives a `kill -9`.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import NamedTuple

from octavo.engine.prefixes import Prefixes
from octavo.engine.request import Output, Request
from octavo.engine.shelf import Shelf
from octavo.engine.store import Stored


class _Arrival(NamedTuple):
    request: Request
    entry: Stored
    data: Future[list[bytes] | None]


class StoreWaits:
    """Only the engine's thread calls, but for `wake`."""

    def __init__(self, prefixes: Prefixes | None, shelf: Shelf | None) -> None:
        self._prefixes, self._shelf = prefixes, shelf
        self._arriving: dict[str, _Arrival] = {}
        self._held: dict[str, list[Output]] = {}
        self._woken = threading.Event()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._arriving

    def __bool__(self) -> bool:
        return bool(self._arriving or self._held)

    @property
    def arriving(self) -> int:
        """Requests that are not queued yet."""
        return len(self._arriving)

    def begin(self, request: Request) -> bool:
        """Whether a request waits for its stored prefix: it is queued when `landed` gives it."""
        entry = None if self._prefixes is None else self._prefixes.wanted(request)
        if entry is None or self._shelf is None:
            return False
        self._arriving[request.id] = _Arrival(request, entry, self._shelf.load(entry))
        return True

    def landed(self) -> list[Request]:
        """Requests whose prefix has been read, and is now in the cache if it was sound."""
        done = [arrival for arrival in self._arriving.values() if arrival.data.done()]
        for arrival in done:
            self.take(arrival.request.id)
            self._restore(arrival)
        return [arrival.request for arrival in done]

    def _restore(self, arrival: _Arrival) -> None:
        data, prefixes = arrival.data.result(), self._prefixes
        if data is None or prefixes is None:
            return
        if prefixes.wanted(arrival.request) is arrival.entry:  # not cached since, nor replaced
            prefixes.restore(arrival.entry, data)

    def take(self, request_id: str) -> Request | None:
        """A request that is to wait no longer, if it did."""
        found = self._arriving.pop(request_id, None)
        if found is None:
            return None
        if self._shelf is not None and not any(
            other.entry is found.entry for other in self._arriving.values()
        ):
            self._shelf.forget(found.entry)
        return found.request

    def release(self, outputs: list[Output]) -> list[Output]:
        """What may be told now: not what waits for a write, and what has done so long enough."""
        shelf = self._shelf
        if shelf is None or not (shelf.saving or self._held):
            return outputs
        told: list[Output] = []
        for output in outputs:
            waits = output.request_id in shelf.saving
            (self._held.setdefault(output.request_id, []) if waits else told).append(output)
        for request_id in [id_ for id_ in self._held if shelf.saved(id_)]:
            told += self._held.pop(request_id)
        return told

    def flush(self, request_id: str) -> list[Output]:
        """Everything that a request would still have been told."""
        if self._shelf is not None:
            self._shelf.saving.pop(request_id, None)
        return self._held.pop(request_id, [])

    def wake(self) -> None:
        """End a `sleep`, from any thread: a job is done, or there is mail."""
        self._woken.set()

    def sleep(self) -> None:
        """Until the next `wake`, or at once after one that nobody slept for."""
        self._woken.wait()
        self._woken.clear()
