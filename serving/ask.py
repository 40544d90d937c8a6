"""A running gateway asked line by line: what `rankyard predict --url` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from models.answers import Ranking, Understanding, to_json
from models.errors import DeadlineError, OverloadedError, RankyardError, UnavailableError
from serving.client import Client
from serving.gateway import wire

_DEADLINE_MS = 30_000.0
"""The most that a gateway allows by default: nobody else waits here, a cold answer may take its time."""


def ask(url: str, lines: Iterable[str], ca_file: Path | None = None) -> Iterator[dict[str, Any]]:
    """Answer every line: the JSON body of POST /v1/rank where it begins with a brace, a query otherwise.

    A bad line gives `{"error": {...}}` in its place; a gateway that cannot answer ends it with an error.
    """
    with Client(url, deadline_ms=_DEADLINE_MS, ca_file=ca_file) as client:
        for line in lines:
            try:
                yield to_json(_answer(client, line))
            except (UnavailableError, DeadlineError, OverloadedError):
                raise
            except RankyardError as error:
                yield {"error": {"code": error.code, "message": error.message, "field": error.field}}


def _answer(client: Client, line: str) -> Understanding | Ranking:
    if line.lstrip().startswith("{"):
        return client.rank(wire.decode(line.encode(), wire.rank_decoder))
    return client.understand(line)
