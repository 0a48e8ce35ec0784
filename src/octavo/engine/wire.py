"""Messages between a client and its engine process: msgpack, each behind four bytes of length.

Errors travel as their type's name and fields, and come out as the same type; a type that only the
other side knows comes out as OctavoError.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import msgspec

from octavo.backends.base import Receipt, RuntimeConfig
from octavo.core import errors
from octavo.core.errors import InternalError, OctavoError, OverloadedError, RequestError
from octavo.engine.request import Output, Request
from octavo.engine.scheduler import Limits
from octavo.engine.stats import EngineStats

_LENGTH_BYTES = 4


class Load(msgspec.Struct, tag=True, frozen=True):
    """First message to the child: `factory` is "module:function", called with `arguments`."""

    factory: str
    arguments: dict[str, Any]


class Submit(msgspec.Struct, tag=True, frozen=True):
    requests: tuple[Request, ...]


class Abort(msgspec.Struct, tag=True, frozen=True):
    request_id: str
    choice: int | None


class Unpin(msgspec.Struct, tag=True, frozen=True):
    """Let a named prefix go."""

    name: str


class Stop(msgspec.Struct, tag=True, frozen=True):
    """End the child."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """First message from the child: what it runs."""

    limits: Limits
    vocab: int
    config: RuntimeConfig
    receipt: Receipt
    hidden: int = 0  # width of the model's states


class Outputs(msgspec.Struct, tag=True, frozen=True):
    """What some steps brought, and how the engine does after them, if that is told now."""

    outputs: list[Output]
    stats: EngineStats | None


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine ended, or never began."""

    error: OctavoError


ToEngine = Load | Submit | Abort | Unpin | Stop
FromEngine = Ready | Outputs | Failed


def _pack_error(value: object) -> object:
    if not isinstance(value, OctavoError):
        raise InternalError(f"{type(value).__name__} has no form between processes")
    fields = {"type": type(value).__name__, "message": str(value)}
    for name in ("param", "code", "retry_after"):
        if (field := getattr(value, name, None)) is not None:
            fields[name] = field
    return fields


def _unpack_error(_: type, fields: Any) -> OctavoError:
    kind = getattr(errors, fields["type"], OctavoError)
    message = fields["message"]
    if kind is RequestError:
        return RequestError(message, fields.get("param"), fields.get("code"))
    if kind is OverloadedError:
        return OverloadedError(message, fields["retry_after"])
    known = isinstance(kind, type) and issubclass(kind, OctavoError)
    return kind(message) if known else OctavoError(message)


class Wire:
    """One end of the connection. Sending is for one thread at a time, receiving for another."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._encode = msgspec.msgpack.Encoder(enc_hook=_pack_error).encode
        kinds = ToEngine | FromEngine
        self._decode = msgspec.msgpack.Decoder(kinds, dec_hook=_unpack_error).decode
        self._stream = end.makefile("rb")

    def send(self, message: ToEngine | FromEngine) -> None:
        """Raises OSError when the other side is gone."""
        body = self._encode(message)
        self._end.sendall(len(body).to_bytes(_LENGTH_BYTES, "little") + body)

    def receive(self) -> ToEngine | FromEngine | None:
        """The next message; None when the other side is gone."""
        try:
            head = self._stream.read(_LENGTH_BYTES)
            body = self._stream.read(int.from_bytes(head, "little"))
        except OSError:
            return None
        if len(head) < _LENGTH_BYTES or not body:
            return None
        message: ToEngine | FromEngine = self._decode(body)
        return message

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the other side was faster
            self._end.shutdown(socket.SHUT_RDWR)
        self._stream.close()
        self._end.close()
