"""Requests that have a time of their own, and what becomes of them when it is up."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from octavo.core.errors import DeadlineError, OctavoError
from octavo.engine.request import Output, Request


class End(Protocol):
    """Ends a request with an error, if it is live."""

    def __call__(self, request_id: str, *, error: OctavoError) -> list[Output]: ...


class Deadlines:
    """Ends requests whose timeout has passed, between two steps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, str]] = []  # those that have ended are found out late

    def add(self, request: Request) -> None:
        if request.timeout:
            heapq.heappush(self._heap, (self._clock() + request.timeout, request.id))

    def end(self, end: End) -> list[Output]:
        """Outputs of those that ended now, with a DeadlineError."""
        outputs: list[Output] = []
        while self._heap and self._heap[0][0] <= self._clock():
            _, request_id = heapq.heappop(self._heap)
            error = DeadlineError(f"request {request_id!r} was not done within its timeout")
            outputs += end(request_id, error=error)
        return outputs
