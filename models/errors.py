"""The one tree of errors: each knows its exit status for the shell and its status for HTTP."""

from __future__ import annotations


class RankyardError(Exception):
    """Root of all refusals: one sentence saying the rule, the value that broke it and what to do.

    `field` names the part of the input at fault (`queries[3]`, `ranking.phases[1].budget_ms`), where there is one.
    """

    code = "internal"
    exit_status = 1
    http_status = 500

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InputError(RankyardError):
    """The call was wrong: nothing was done, nothing was written."""

    code = "invalid_input"
    exit_status = 2
    http_status = 422


class ConfigError(InputError):
    """A configuration breaks a rule, or names something that does not exist."""

    code = "invalid_config"


class DataError(InputError):
    """A data file breaks its format; names the file, the line and the rule."""

    code = "invalid_data"


class BundleError(InputError):
    """A bundle's digest, format or signature does not hold."""

    code = "invalid_bundle"
    http_status = 500


class NotFoundError(InputError):
    """A model, version, alias or route that does not exist."""

    code = "not_found"
    http_status = 404


class TooLargeError(InputError):
    """A body, list or text beyond its limit."""

    code = "too_large"
    http_status = 413


class WorkspaceError(InputError):
    """The workspace, its disk, a port or a needed program cannot be used."""

    code = "workspace"
    http_status = 500


class RefusedError(RankyardError):
    """The work itself says no: a gate refused, parity failed."""

    code = "refused"
    http_status = 409


class ParityError(RefusedError):
    """An export answers differently from the model it came from."""

    code = "parity"


class OverloadedError(RankyardError):
    """The queue is full; `retry_after_s` says when to come back."""

    code = "overloaded"
    http_status = 429

    def __init__(self, message: str, *, retry_after_s: float, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class DeadlineError(RankyardError):
    """The request's deadline passed before its answer was there."""

    code = "deadline_exceeded"
    http_status = 504


class UnavailableError(RankyardError):
    """A part that the answer needs (a model server, a draining gateway) is not there now."""

    code = "unavailable"
    http_status = 503
