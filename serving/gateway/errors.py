"""Refusals at the HTTP edge: what a wrong request is told."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from models.errors import InputError

EXPIRED = (
    "the deadline must not pass before the answer is there, it did; allow more time with x-deadline-ms, or ask less"
)
"""What a request is told whose deadline passed."""
FAILED = "the gateway failed on this request; its log says why"
"""What a request is told of an error that nobody expected: it may hold what is nobody's business."""


class MalformedError(InputError):
    """The body is not JSON at all."""

    code = "malformed_json"
    http_status = 400


class MalformedArrowError(InputError):
    """The body is not an Arrow IPC stream at all."""

    code = "malformed_arrow"
    http_status = 400


class MalformedMessageError(InputError):
    """The body of a gRPC call is not the message that the method takes."""

    code = "malformed_message"
    http_status = 400


class MalformedEncodingError(InputError):
    """The body is not in the encoding that it names."""

    code = "malformed_encoding"
    http_status = 400


class UnsupportedError(InputError):
    """A part of a protocol that this gateway does not have."""

    code = "unsupported"
    http_status = 501


class MediaError(InputError):
    """The body is of a kind that this gateway cannot read."""

    code = "unsupported_media_type"
    http_status = 415


class MethodError(InputError):
    """The route exists, but does not answer this method."""

    code = "method_not_allowed"
    http_status = 405


class MalformedHttpError(InputError):
    """The bytes are not HTTP/1.1, or could be read in two ways."""

    code = "malformed_http"
    http_status = 400


class HeadTooLargeError(InputError):
    """The request line and the headers are beyond their limit."""

    code = "head_too_large"
    http_status = 431


class ExpectationError(InputError):
    """The client expects what this server does not know."""

    code = "expectation_failed"
    http_status = 417


class SlowHeadError(InputError):
    """The head of a request did not arrive in time."""

    code = "head_timeout"
    http_status = 408


class SlowBodyError(InputError):
    """The body did not arrive within the request's deadline."""

    code = "body_timeout"
    http_status = 408


class SignatureError(InputError):
    """A webhook's delivery is not signed as it must be, or too old."""

    code = "unauthenticated"
    http_status = 401


class ReplayError(InputError):
    """A webhook's delivery that was accepted before."""

    code = "replayed"
    http_status = 409


_AT = re.compile(r"^(?P<rule>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.?([^.\[]+)")
_TYPE = re.compile(r"Expected `(?P<wanted>.+)`, got `(?P<found>.+)`$")
_MISSING = re.compile(r"Object missing required field `(?P<key>.+)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.+)`$")
_BOUND = re.compile(r"Expected `\w+` (?P<bound>[<>]=? .+)$")
_OUT_OF_RANGE = "Number out of range"
_CHOICES = {"$.explain": 'true, false or "values"'}
"""What may stand where a request chooses among words."""
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
_MOST_QUOTED = 40
_UNREADABLE = "what no reader can hold"


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
    if rule == _OUT_OF_RANGE:
        field, _ = _found(path, partial(json.loads, body), _is_huge)  # msgspec reads no such number
        return InputError(
            f"{field} must be a number up to 1.8e308, got a larger one; use null for missing", field=field
        )
    field, got = _found(path, partial(msgspec.json.decode, body), partial(_is_of, wrong["found"] if wrong else None))
    named = field or "the body"
    if path in _CHOICES:
        return InputError(f"{named} must be {_CHOICES[path]}, got {got}; send one of them", field=field)
    if wrong:
        wanted = " or ".join(_NAMES.get(name.strip(), name.strip()) for name in wrong["wanted"].split("|"))
        return InputError(f"{named} must be {wanted}, got {got}; send it so", field=field)
    what = f"{named} must be {bound['bound']}" if bound else f"{named} must be as /docs says ({rule})"
    return InputError(f"{what}, got {got}; correct it", field=field)


def quoted(value: bytes) -> str:
    """The start of a header's value, for messages."""
    return repr(value[:_MOST_QUOTED].decode("latin-1"))


def shown(value: Any) -> str:
    """The start of a value that was sent, as JSON."""
    try:
        text = msgspec.json.encode(value).decode()
    except RecursionError:
        return _UNREADABLE
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _join(path: str, key: str) -> str:
    return f"{path.removeprefix('$').removeprefix('.')}.{key}".removeprefix(".")


def _found(path: str, read: Callable[[], Any], is_wrong: Callable[[Any], bool]) -> tuple[str | None, str]:
    """The path of the value at fault and the start of it, as JSON. read: gives all that was sent."""
    steps = _STEP.findall(path.removeprefix("$"))
    try:
        field, value = next(_locate(read(), steps, is_wrong))
    except (ValueError, RecursionError, StopIteration):
        return path.removeprefix("$").removeprefix(".") or None, _UNREADABLE
    return field.removeprefix(".") or None, shown(value)


def _is_of(type_name: str | None, value: Any) -> bool:
    return type_name is None or _TYPES.get(type(value), "null") == type_name


def _is_huge(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) > sys.float_info.max


def _locate(value: Any, steps: Sequence[tuple[str, str]], is_wrong: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """Follow msgspec's path; `[...]` is any key of an object, so every one is tried that leads to what is wrong."""
    if not steps:
        if is_wrong(value):
            yield "", value
        return
    index, name = steps[0]
    places: list[tuple[str, Any]] = []
    if index.isdigit() and isinstance(value, list):
        places = [(f"[{index}]", item) for item in value[int(index) : int(index) + 1]]
    elif isinstance(value, dict):
        places = [(f".{key}", item) for key, item in value.items() if index == "..." or key == name]
    for place, item in places:
        for field, found in _locate(item, steps[1:], is_wrong):
            yield place + field, found
