"""An engine in a child process, behind the calls of `EngineClient`.

The child holds the model; when it dies (killed, out of memory, a bug), every open request gets one
clear error, and another child is started. A server stays up meanwhile, and says so.

    parent: submit, abort -> Wire -> child: EngineLoop -> Engine
            reader thread <- Wire <-        all outputs of a step, stats
"""

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from octavo.core.errors import OctavoError, OverloadedError, UnavailableError
from octavo.engine.client import Inbox, Mail, OutputStream
from octavo.engine.engine import with_seed
from octavo.engine.request import Output, Request
from octavo.engine.stats import EngineStats
from octavo.engine.wire import (
    Abort,
    Failed,
    FromEngine,
    Load,
    Outputs,
    Ready,
    Stop,
    Submit,
    ToEngine,
    Unpin,
    Wire,
)

State = Literal["starting", "ready", "failed", "closed"]

_MOST_STARTS = 5  # in a row without one that became ready
_STOP_SECONDS = 10.0  # until a child that was told to stop is killed


class ServingClient(Protocol):
    """What a server needs of an engine that runs elsewhere. Any thread may call any method."""

    stats: EngineStats

    def send(self, requests: Sequence[Request], inbox: Inbox) -> tuple[Request, ...]:
        """Start requests whose outputs go to an inbox of the caller's; returns them as they run.
        Raises UnavailableError, OverloadedError."""

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """End a request, or one choice, early; nothing for one that isn't open."""

    def unpin(self, name: str) -> None:
        """Let a named prefix go."""

    def health(self) -> Health: ...

    def wait_ready(self) -> Ready:
        """Block until the model is loaded. Raises UnavailableError with what keeps it from it."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Health:
    """What the engine process is doing. `restarts`: since the client was made; `reason`: why it
    isn't ready."""

    state: State
    restarts: int
    pid: int | None
    reason: str = ""


class _Child:
    """One process, its connection, and the requests that it has."""

    def __init__(self, load: Load, on_message: Callable[[_Child, FromEngine | None], None]) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "octavo.engine.worker", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self.wire = Wire(ours)
        self.inboxes: dict[str, Inbox] = {}
        self.owed: dict[str, int] = {}
        self._on_message = on_message
        self.wire.send(load)
        threading.Thread(target=self._read, name="octavo-engine-reader", daemon=True).start()

    def _read(self) -> None:
        while isinstance(message := self.wire.receive(), Ready | Outputs | Failed):
            self._on_message(self, message)
        self.process.wait()
        self._on_message(self, None)

    def end(self) -> None:
        """Tell it to stop, and kill it when it doesn't."""
        try:
            self.wire.send(Stop())
            self.process.wait(_STOP_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
        self.process.wait()


class ProcessClient:
    """See `EngineClient` and `ServingClient`. `factory` ("module:function") makes the engine in the
    child from `arguments`."""

    def __init__(self, factory: str, arguments: dict[str, Any]) -> None:
        self._load = Load(factory, arguments)
        self._lock = threading.RLock()  # guards what follows
        self._changed = threading.Condition(self._lock)
        self._state: State = "starting"
        self._reason = ""
        self._restarts = 0
        self._starts = 1
        self.ready: Ready | None = None
        self.stats = EngineStats()
        self._child = _Child(self._load, self._receive)
        self._finalizer = weakref.finalize(self, _kill, self._child.process)

    def wait_ready(self) -> Ready:
        with self._changed:
            self._changed.wait_for(lambda: self._state != "starting")
            if self.ready is None or self._state != "ready":
                raise UnavailableError(self._reason or "the engine is closed")
            return self.ready

    def health(self) -> Health:
        with self._lock:
            pid = self._child.process.pid if self._state in ("starting", "ready") else None
            return Health(self._state, self._restarts, pid, self._reason)

    def submit(self, requests: Sequence[Request]) -> OutputStream:
        inbox: Mail = queue.SimpleQueue()
        return OutputStream(self, self.send(requests, inbox), inbox)

    def generate(self, request: Request) -> OutputStream:
        return self.submit([request])

    def send(self, requests: Sequence[Request], inbox: Inbox) -> tuple[Request, ...]:
        seeded = tuple(with_seed(request) for request in requests)
        with self._lock:
            if self._state != "ready" or self.ready is None:
                raise UnavailableError(self._reason or f"the engine is {self._state}")
            self._check_room(len(seeded), self.ready.limits.max_waiting)
            self._tell(Submit(seeded))  # first: what can't be told must not be waited for
            for request in seeded:
                self._child.inboxes[request.id] = inbox
                self._child.owed[request.id] = request.params.n
        return seeded

    def _check_room(self, count: int, most: int) -> None:
        waiting = len(self._child.inboxes) - self.stats.running
        if most and waiting + count > most:
            raise OverloadedError(
                f"{waiting} requests wait and at most {most} may; try again in a moment",
                retry_after=max(1.0, 0.25 * waiting),
            )

    def abort(self, request_id: str, choice: int | None = None) -> None:
        with self._lock:
            if request_id in self._child.inboxes:
                self._tell(Abort(request_id, choice))

    def unpin(self, name: str) -> None:
        with self._lock:
            self._tell(Unpin(name))

    def _tell(self, message: ToEngine) -> None:
        with contextlib.suppress(OSError):  # the reader finds out too, and fails what is open
            self._child.wire.send(message)

    def _receive(self, child: _Child, message: FromEngine | None) -> None:
        """On the reader's thread."""
        with self._changed:
            if child is not self._child:
                return
            if isinstance(message, Ready):
                self.ready, self._state, self._reason, self._starts = message, "ready", "", 0
                self.stats = EngineStats(kv_tokens=message.config.kv_tokens)
            elif isinstance(message, Outputs):
                self.stats = message.stats or self.stats
                self._deliver(child, message.outputs)
            elif isinstance(message, Failed):
                self._reason = str(message.error)
                self._fail_all(child, message.error)
            else:
                self._replace(child)
            self._changed.notify_all()

    def _deliver(self, child: _Child, outputs: list[Output]) -> None:
        parcels: dict[Inbox, list[Output]] = {}
        for output in outputs:
            inbox = child.inboxes.get(output.request_id)
            if inbox is None:
                continue
            parcels.setdefault(inbox, []).append(output)
            if output.finish is not None:
                child.owed[output.request_id] -= 1
                if not child.owed[output.request_id]:
                    del child.owed[output.request_id], child.inboxes[output.request_id]
        for inbox, parcel in parcels.items():
            inbox.put(parcel)

    def _fail_all(self, child: _Child, error: OctavoError) -> None:
        for inbox in set(child.inboxes.values()):
            inbox.put(error)
        child.inboxes.clear()
        child.owed.clear()

    def _replace(self, child: _Child) -> None:
        """The child is gone: fail what it had, start another unless that is hopeless."""
        status = child.process.returncode
        reason = self._reason or f"the engine process ended with status {status}"
        self._fail_all(child, UnavailableError(f"{reason}; the request can be sent again"))
        if self._state == "closed":
            return
        never_ready = self.ready is None
        self._reason, self.stats = reason, EngineStats()
        if never_ready or self._starts >= _MOST_STARTS:
            self._state = "failed"
            return
        self._state = "starting"
        self._starts += 1
        self._restarts += 1
        self._child = _Child(self._load, self._receive)
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _kill, self._child.process)

    def close(self) -> None:
        with self._changed:
            if self._state == "closed":
                return
            self._state, self._reason = "closed", "the engine is closed; make a new one"
            child = self._child
            self._changed.notify_all()
        child.end()
        self._fail_all(child, OctavoError(self._reason))
        child.wire.close()
        self._finalizer.detach()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
