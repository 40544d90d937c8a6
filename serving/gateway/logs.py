"""What a gateway writes to standard error: lines of text or of JSON, with the id of the request they belong to.

What callers ask is theirs: no line holds the text of a request, nor the message of an exception, which may quote it,
unless the configuration says so.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import msgspec

from serving.gateway import tracing
from serving.gateway.config import LogsConfig

request_id: ContextVar[bytes | None] = ContextVar("request_id", default=None)
"""Of the request that what runs now belongs to."""

requests = logging.getLogger("rankyard.requests")
"""One line a request, where they are wanted; `extra={"fields": {...}}` are its facts."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


@contextmanager
def written(config: LogsConfig, process: int | None = None) -> Iterator[None]:
    """Write the log as configured, while entered: warnings of everybody, and of rankyard what `config.level` says.

    process: the number of this process, where there are others.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(config, process) if config.format == "json" else _Text(config, process))
    root, own = logging.getLogger(), logging.getLogger("rankyard")
    before = own.level, requests.level
    root.addHandler(handler)
    own.setLevel(config.level.upper())
    requests.setLevel(logging.INFO if config.requests else logging.CRITICAL)
    try:
        yield
    finally:
        root.removeHandler(handler)
        own.setLevel(before[0])
        requests.setLevel(before[1])


def told(config: LogsConfig, message: str) -> str:
    """What a person is told on standard error, as a line of it: where the log is JSON, one more object."""
    if config.format != "json":
        return message
    return _Json(config, None).format(logging.LogRecord("rankyard.gateway", logging.INFO, "", 0, message, (), None))


class _Formatter(logging.Formatter):
    def __init__(self, config: LogsConfig, process: int | None) -> None:
        super().__init__()
        self._process = process
        self._tells_texts = config.query_text

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What a line says, in its order."""
        message = record.getMessage()
        if record.name == "asyncio" and not self._tells_texts:
            # Its further lines show exceptions as they are.
            message = message.partition("\n")[0]
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "time": moment,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        if self._process is not None:
            fields["process"] = self._process
        if (found := request_id.get()) is not None:
            fields["request_id"] = found.decode()
        if (span := tracing.current.get()) is not None:
            fields["trace_id"] = f"{span.trace.trace_id:032x}"
        fields |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = self._exception(record.exc_info[1])
        return fields

    def _exception(self, error: BaseException) -> str:
        """Give a traceback, its messages left out where they may quote a request."""
        if self._tells_texts:
            return "".join(traceback.format_exception(error)).rstrip()
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        parts = [] if cause is None else [self._exception(cause), "which led to"]
        parts.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__)
        if isinstance(error, BaseExceptionGroup):
            parts += [self._exception(one) for one in error.exceptions]
        return "\n".join(parts)


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _encode(self.fields(record)).decode()


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        head = f"{fields.pop('time')} {fields.pop('level')} {fields.pop('message')}"
        del fields["logger"]
        exception = fields.pop("exception", None)
        line = " ".join([head, *(f"{name}={value}" for name, value in fields.items())])
        return line if exception is None else f"{line}\n{exception}"
