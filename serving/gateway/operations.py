"""Routes as OpenAPI describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ERRORS = {
    "400": "The body is not JSON, or not in the encoding that it names.",
    "401": "A webhook's delivery without the right signature.",
    "404": "No such path, or no model that answers this.",
    "405": "The path answers another method.",
    "408": "The body did not arrive before the deadline.",
    "409": "A webhook's delivery that came before.",
    "413": "The body, a list or a text is beyond its limit.",
    "415": "The body is of a kind or an encoding that this gateway does not read.",
    "422": "The request breaks a rule; `field` is the path of the part at fault.",
    "429": "Too many requests wait; `Retry-After` says when to come back.",
    "500": "The gateway failed; its log says why.",
    "501": "A part of the protocol that this gateway does not have.",
    "503": "Starting, stopping, or without its model server; `Retry-After` says when to come back.",
    "504": "The deadline passed before the answer was there.",
}
"""What each status means."""

REFUSALS = tuple(status for status in ERRORS if status not in ("401", "409", "501"))
"""What a route that takes a body may answer."""


def post(
    summary: str,
    body: dict[str, Any],
    examples: dict[str, Any],
    answer: dict[str, Any],
    error: Any,
    *,
    statuses: Sequence[str] = REFUSALS,
    description: str = "",
    binary: str | None = None,
) -> dict[str, Any]:
    """Describe a route. error: the shape of what it answers with `statuses`. binary: a second content type."""
    content: dict[str, Any] = {"application/json": {"schema": body, "examples": examples}}
    if binary is not None:
        content[binary] = {"schema": {"type": "string", "format": "binary"}}
    return {
        "post": {
            "summary": summary,
            **({"description": description} if description else {}),
            "parameters": [
                {
                    "name": "x-deadline-ms",
                    "in": "header",
                    "description": "Milliseconds after which nobody waits for the answer any more.",
                    "schema": {"type": "number", "exclusiveMinimum": 0},
                },
                {
                    "name": "x-priority",
                    "in": "header",
                    "description": "Bulk work gives way to what somebody sits and waits for.",
                    "schema": {"type": "string", "enum": ["interactive", "bulk"], "default": "interactive"},
                },
            ],
            "requestBody": {"required": True, "content": content},
            "responses": _responses(answer, error, statuses),
        }
    }


def get(summary: str, answer: dict[str, Any], error: dict[str, Any], statuses: Sequence[str]) -> dict[str, Any]:
    """Describe a route that is asked without a body."""
    return {"get": {"summary": summary, "responses": _responses(answer, error, statuses)}}


def _responses(answer: dict[str, Any], error: dict[str, Any], statuses: Sequence[str]) -> dict[str, Any]:
    responses = {"200": {"description": "The answer", "content": {"application/json": {"schema": answer}}}}
    for status in statuses:
        responses[status] = {"description": ERRORS[status], "content": {"application/json": {"schema": error}}}
    return responses
