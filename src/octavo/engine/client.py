"""How callers reach an engine: `EngineClient`, and its in-process form.

The engine runs on a thread of its own, so that SIGINT, which Python delivers to the main thread,
interrupts a caller that waits and never the engine: the caller's stream closes, which aborts its
requests between two steps, and cancels a step that computes for aborted requests only. `process`
has the same calls with a child process behind them.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from octavo.core.closing import Closing
from octavo.core.errors import InternalError, OctavoError, RequestError
from octavo.engine.engine import Engine, with_seed
from octavo.engine.request import Output, Request

T = TypeVar("T")


class EngineClient(Protocol):
    """Any thread may call any method."""

    def submit(self, requests: Sequence[Request]) -> OutputStream:
        """Start requests together. Raises RequestError for the first that can't be served, and
        then starts none."""

    def generate(self, request: Request) -> OutputStream:
        """Start one request."""

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """End a request, or one choice, early. Its stream gets an output with finish "abort"; a
        step that only such requests are in ends at once."""

    def close(self) -> None:
        """Stop the engine; streams that are open end with an error. Idempotent."""


class OutputStream(Iterator[Output], Closing):
    """Outputs of some requests, in the order of the steps, until every choice has finished.

    `requests` are as they run: seeds drawn. Closing (or leaving a `with`, or collecting the stream)
    aborts what still runs. Failures of the engine itself are raised from `next`.
    """

    def __init__(self, client: EngineClient, requests: tuple[Request, ...], inbox: Mail) -> None:
        self.requests = requests
        self._client = client
        self._inbox = inbox
        self._ready: list[Output] = []
        self._open = {(r.id, choice) for r in requests for choice in range(r.params.n)}

    def __next__(self) -> Output:
        while not self._ready:
            if not self._open:
                raise StopIteration
            self._receive()
        output = self._ready.pop()
        if output.finish is not None:
            self._open.discard((output.request_id, output.choice))
        return output

    def _receive(self) -> None:
        try:
            received = self._inbox.get()
        except KeyboardInterrupt:  # a traceback may keep the stream, and so its requests, alive
            self.close()
            raise
        if isinstance(received, BaseException):
            self._open.clear()
            raise received
        self._ready = received[::-1]

    def close(self) -> None:
        """Abort what has not finished."""
        for request_id in {request_id for request_id, _ in self._open}:
            self._client.abort(request_id)
        self._open.clear()
        self._ready.clear()

    def __del__(self) -> None:
        self.close()


class Inbox(Protocol):
    """Where outputs are put, from the engine's thread; a failure of the engine comes last."""

    def put(self, item: list[Output] | BaseException) -> None: ...


Mail = queue.SimpleQueue["list[Output] | BaseException"]


class _Submit(NamedTuple):
    requests: tuple[Request, ...]
    inbox: Inbox


class _Abort(NamedTuple):
    request_id: str
    choice: int | None


class _Call(NamedTuple):
    """Run something on the engine's thread, between two steps."""

    what: Callable[[], None]


class _Stop(NamedTuple):
    """Close the loop."""


_Message = _Submit | _Abort | _Call | _Stop


class EngineLoop:
    """The engine's thread and all it owns. It must not know the client, or that would never be
    collected."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._pid = os.getpid()
        self.mailbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards what follows
        self._thread: threading.Thread | None = None
        self._failure: OctavoError | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._owed: dict[str, int] = {}  # choices that have not finished
        self._doomed: set[str] = set()  # aborts in the mailbox; any thread adds, the loop removes

    def forked(self) -> bool:
        """Whether this is a child's copy: no thread serves it, and its locks may never be freed."""
        return os.getpid() != self._pid

    def _post(self, message: _Submit | _Call) -> None:
        """Hand over a message; the first starts the thread. Raises what ended the engine."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._thread is None:
                self._thread = threading.Thread(target=self.run, name="octavo-engine", daemon=True)
                self._thread.start()
            self._put(message)

    def _put(self, message: _Message) -> None:
        self.mailbox.put(message)
        self.engine.wake()

    def run(self) -> None:
        """Until a stop message, or a failure of our own, which every caller then gets."""
        try:
            while self._read_mail():
                if self.engine.has_work():
                    self._deliver(self.engine.step())
        except Exception as error:
            self._end(_as_failure(error))
        else:
            self._end(_closed())

    def submit(self, requests: tuple[Request, ...], inbox: Inbox) -> None:
        """Start requests together; their seeds are drawn."""
        self._post(_Submit(requests, inbox))

    def call(self, what: Callable[[], None]) -> None:
        """Have `what` run on the engine's thread. It must not raise."""
        self._post(_Call(what))

    def stop(self) -> None:
        """End the thread, and the step that runs. May be called again."""
        if self.forked():
            return
        self._put(_Stop())
        self.engine.cancel()
        with self._lock:
            thread = self._thread
            self._failure = self._failure or _closed()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def abort(self, request_id: str, choice: int | None) -> None:
        """May be called from anywhere, as a stream is that the collector closes."""
        if self.forked():
            return
        if choice is not None:
            self._put(_Abort(request_id, choice))
            return
        self._doomed.add(request_id)
        self._put(_Abort(request_id, None))  # before the step ends: it is handled then
        self.engine.cancel(self._doomed)

    def _read_mail(self) -> bool:
        """Handle what has come; wait only when idle. False: stop."""
        while not self.engine.has_work() or not self.mailbox.empty():
            message = self.mailbox.get()
            if isinstance(message, _Stop):
                return False
            self._handle(message)
        return True

    def _handle(self, message: _Submit | _Abort | _Call) -> None:
        if isinstance(message, _Call):
            message.what()
            return
        if isinstance(message, _Abort):
            self._doomed.discard(message.request_id)
            self._deliver(self.engine.abort(message.request_id, message.choice))
            return
        for request in message.requests:
            if request.id in self._inboxes:
                message.inbox.put(_refusal(request))
                continue
            self._inboxes[request.id] = message.inbox
            self._owed[request.id] = request.params.n
            self.engine.submit(request)

    def _deliver(self, outputs: list[Output]) -> None:
        """One message per stream and step."""
        parcels: dict[Inbox, list[Output]] = {}
        for output in outputs:
            parcels.setdefault(self._inboxes[output.request_id], []).append(output)
            if output.finish is not None:
                self._settle(output.request_id)
        for inbox, parcel in parcels.items():
            inbox.put(parcel)

    def _settle(self, request_id: str) -> None:
        self._owed[request_id] -= 1
        if not self._owed[request_id]:
            del self._owed[request_id], self._inboxes[request_id]

    def _end(self, failure: OctavoError) -> None:
        with self._lock:
            self._failure = failure
        for inbox in set(self._inboxes.values()):
            inbox.put(failure)
        self._inboxes.clear()
        while not self.mailbox.empty():
            message = self.mailbox.get()
            if isinstance(message, _Submit):
                message.inbox.put(failure)
            elif isinstance(message, _Call):
                message.what()  # somebody waits for it


def _closed() -> OctavoError:
    return OctavoError("the engine is closed; make a new one")


def _as_failure(error: Exception) -> OctavoError:
    if isinstance(error, OctavoError):
        return error
    failure = InternalError(f"the engine failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _refusal(request: Request) -> list[Output]:
    error = RequestError(f"request id {request.id!r} is in use", param="id")
    choices = range(request.params.n)
    return [Output(request.id, choice, (), finish="error", error=error) for choice in choices]


class InProcessClient:
    """An engine on a thread of this process. The thread starts with the first request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = EngineLoop(engine)
        # Also runs at exit: a thread inside native code must not outlive the interpreter.
        self._finalizer = weakref.finalize(self, self._loop.stop)

    def submit(self, requests: Sequence[Request]) -> OutputStream:
        if self._loop.forked():
            raise OctavoError("an engine does not survive fork(); make it in the child process")
        for request in requests:
            self._engine.validate(request)
        self._engine.check_room(len(requests))
        seeded = tuple(with_seed(request) for request in requests)
        inbox: Mail = queue.SimpleQueue()
        self._loop.submit(seeded, inbox)
        return OutputStream(self, seeded, inbox)

    def generate(self, request: Request) -> OutputStream:
        return self.submit([request])

    def between_steps(self, what: Callable[[Engine], T]) -> T:
        """What a function of the engine gives, run on its thread. It must not raise."""
        answer: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._loop.call(lambda: answer.put(what(self._engine)))
        return answer.get()

    def abort(self, request_id: str, choice: int | None = None) -> None:
        self._loop.abort(request_id, choice)

    def close(self) -> None:
        self._finalizer()
