"""Refusals at the HTTP edge: what a wrong request is told."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from models.errors import InputError

EXPIRED = (
    "the deadline must not pass before the answer is there, it did; allow more time with x-deadline-ms, or ask less"
)
"""What a request is told whose deadline passed."""


class MalformedError(InputError):
    """The body is not JSON at all."""

    code = "malformed_json"
    http_status = 400


class MalformedArrowError(InputError):
    """The body is not an Arrow IPC stream at all."""

    code = "malformed_arrow"
    http_status = 400


class MediaError(InputError):
    """The body is of a kind that this gateway cannot read."""

    code = "unsupported_media_type"
    http_status = 415


class MethodError(InputError):
    """The route exists, but does not answer this method."""

    code = "method_not_allowed"
    http_status = 405


class SlowBodyError(InputError):
    """The body did not arrive within the request's deadline."""

    code = "body_timeout"
    http_status = 408


_AT = re.compile(r"^(?P<rule>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.?([^.\[]+)")
_TYPE = re.compile(r"Expected `(?P<wanted>.+)`, got `(?P<found>.+)`$")
_MISSING = re.compile(r"Object missing required field `(?P<key>.+)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.+)`$")
_BOUND = re.compile(r"Expected `\w+` (?P<bound>[<>]=? .+)$")
_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
}
_TYPES: dict[type, str] = {str: "str", int: "int", float: "float", bool: "bool", dict: "object", list: "array"}
_MOST_SHOWN = 60


def invalid(error: msgspec.ValidationError, body: bytes) -> InputError:
    """Say a msgspec message about `body` as rule, value and what to do, with the path of the field at fault."""
    matched = _AT.match(str(error))
    rule, path = (matched["rule"], matched["path"] or "$") if matched else (str(error), "$")
    if missing := _MISSING.match(rule):
        place = _join(path, missing["key"])
        return InputError(f"{place} must be given, it is missing; add it", field=place)
    if unknown := _UNKNOWN.match(rule):
        place = _join(path, unknown["key"])
        return InputError(f"{place} is not a field of this request; leave it out or correct its name", field=place)
    wrong, bound = _TYPE.match(rule), _BOUND.match(rule)
    field, got = _found(body, path, wrong["found"] if wrong else None)
    named = field or "the body"
    if wrong:
        wanted = " or ".join(_NAMES.get(name.strip(), name.strip()) for name in wrong["wanted"].split("|"))
        return InputError(f"{named} must be {wanted}, got {got}; send it so", field=field)
    what = f"{named} must be {bound['bound']}" if bound else f"{named} must be as /docs says ({rule})"
    return InputError(f"{what}, got {got}; correct it", field=field)


def _join(path: str, key: str) -> str:
    return f"{path.removeprefix('$').removeprefix('.')}.{key}".removeprefix(".")


def _found(body: bytes, path: str, type_name: str | None) -> tuple[str | None, str]:
    """The path of the value at fault and the start of it, as JSON."""
    steps = _STEP.findall(path.removeprefix("$"))
    try:
        field, value = next(_locate(msgspec.json.decode(body), steps, type_name))
    except (msgspec.DecodeError, RecursionError, StopIteration):
        return path.removeprefix("$").removeprefix(".") or None, "what no reader can hold"
    shown = msgspec.json.encode(value).decode()
    return field.removeprefix(".") or None, shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"


def _locate(value: Any, steps: Sequence[tuple[str, str]], type_name: str | None) -> Iterator[tuple[str, Any]]:
    """Follow msgspec's path; `[...]` is any key of an object, so every one is tried that leads to the type at fault."""
    if not steps:
        if type_name is None or _TYPES.get(type(value), "null") == type_name:
            yield "", value
        return
    index, name = steps[0]
    places: list[tuple[str, Any]] = []
    if index.isdigit() and isinstance(value, list):
        places = [(f"[{index}]", item) for item in value[int(index) : int(index) + 1]]
    elif isinstance(value, dict):
        places = [(f".{key}", item) for key, item in value.items() if index == "..." or key == name]
    for place, item in places:
        for field, found in _locate(item, steps[1:], type_name):
            yield place + field, found
