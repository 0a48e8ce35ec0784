"""Every error that a person can meet. Each names the thing, the place and the remedy.

`UserError` means the input was at fault (exit status 2); any other `OctavoError` is our own failure
(exit status 1). Code that wants to react to a failure catches a type, never a message.
"""

from __future__ import annotations


class OctavoError(Exception):
    """Base of all errors that Octavo raises on purpose."""

    exit_status = 1


class UserError(OctavoError):
    """Something the caller gave can't be used as it is."""

    exit_status = 2


class ModelFileError(UserError):
    """A model file or directory is missing, damaged, or lies about its own content."""


class ConfigError(UserError):
    """A config, header or recipe holds an unknown, missing or ill-typed key."""


class UnsupportedError(UserError):
    """A well-formed request for something that this build, backend or machine can't do."""


class FormatError(UserError):
    """A number format that can't be parsed, or that a tensor's shape can't take."""


class TokenizerError(UserError):
    """A tokenizer or chat template that can't be built or used."""


class RequestError(UserError):
    """A generation request that can't be served. `param` names the offending field."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class OverloadedError(OctavoError):
    """Too many requests wait. `retry_after`: seconds after which a place is likely."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(OctavoError):
    """The engine is starting, restarting or gone. Try again; its health says when."""


class DeadlineError(OctavoError):
    """A request was not done within its own time."""


class ResourceError(UserError):
    """Too little memory, disk or address space for what was asked."""


class FetchError(UserError):
    """A model could not be fetched (offline, gone, or its hash differs)."""


class NumericsError(OctavoError):
    """A computation broke down (a Cholesky factor, a NaN). Names the layer, the knob, the sample
    count."""


class InternalError(OctavoError):
    """An invariant of ours does not hold. Always a bug; please report it."""
