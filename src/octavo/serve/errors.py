"""Errors as OpenAI's clients read them: a status and {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.core.errors import (
    DeadlineError,
    OctavoError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UserError,
)


class ApiError(Exception):
    """An answer with a status of its own. `headers`: beside the body."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        fields = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": fields}


def api_error(error: BaseException) -> ApiError:
    """What a client is told of a failure; ours are not spelled out to strangers."""
    if isinstance(error, ApiError):
        return error
    text = str(error)
    if isinstance(error, RequestError):
        return ApiError(400, text, param=error.param, code=error.code)
    if isinstance(error, OverloadedError):
        retry = {"Retry-After": str(round(error.retry_after))}
        return ApiError(429, text, "rate_limit_error", code="rate_limit_exceeded", headers=retry)
    if isinstance(error, UnavailableError):
        return ApiError(503, text, "service_unavailable", headers={"Retry-After": "2"})
    if isinstance(error, DeadlineError):
        return ApiError(408, text, "timeout_error", code="timeout")
    if isinstance(error, UserError):
        return ApiError(400, text)
    if isinstance(error, OctavoError):
        return ApiError(500, text, "server_error")
    return ApiError(500, "the server failed on this request; its log says how", "server_error")
