"""What stands before every request: keys, sizes, and a server that is going down."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from octavo.serve.anthropic import body_for
from octavo.serve.errors import ApiError
from octavo.serve.wording import json_bytes

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = ("/health", "/version", "/metrics")
_MOST_HEADER_BYTES = 64 << 10


class Guard:
    """An ASGI app around another. `keys`: any of them opens /v1 and the token endpoints; none: all
    is open. `draining` says whether new work is refused."""

    def __init__(
        self, app: App, keys: Sequence[str], max_body: int, draining: Callable[[], bool]
    ) -> None:
        self._app, self._max_body, self._draining = app, max_body, draining
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await _refuse(scope["path"], error, send)
            return
        await self._app(scope, _Counted(receive, self._max_body), send)

    def _check(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > _MOST_HEADER_BYTES:
            raise ApiError(431, f"the headers are larger than {_MOST_HEADER_BYTES} bytes")
        found = dict(headers)
        if scope["path"] not in _OPEN and scope["method"] != "OPTIONS":
            self._check_key(found)
        if self._draining() and scope["method"] == "POST":
            raise ApiError(503, "the server is shutting down; send this elsewhere",
                           "service_unavailable", headers={"Retry-After": "5"})  # fmt: skip
        length = found.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_body:
            raise too_large(self._max_body)

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        if not self._keys:
            return
        given = headers.get(b"authorization", b"")
        offered = given[7:] if given[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        # Every key is compared, each in constant time: the answer's time tells nothing.
        matches = [hmac.compare_digest(offered, key) for key in self._keys]
        if not any(matches):
            raise ApiError(
                401, "a valid API key is needed, as 'Authorization: Bearer KEY'",
                "authentication_error", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


def too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes, the server's limit")


class _Counted:
    """Receives a body up to a size, whatever its headers said."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._seen = receive, most, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._most:
            raise too_large(self._most)
        return message


async def _refuse(path: str, error: ApiError, send: Send) -> None:
    body = json_bytes(body_for(path, error))
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    pairs = [(k.lower().encode(), v.encode()) for k, v in {**headers, **error.headers}.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
