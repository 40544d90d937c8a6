"""Refusals at the HTTP edge: what a wrong request is told."""

from __future__ import annotations

import re

import msgspec

from models.errors import InputError


class MalformedError(InputError):
    """The body is not JSON at all."""

    code = "malformed_json"
    http_status = 400


class MethodError(InputError):
    """The route exists, but does not answer this method."""

    code = "method_not_allowed"
    http_status = 405


class SlowBodyError(InputError):
    """The body did not arrive within the request's deadline."""

    code = "body_timeout"
    http_status = 408


_AT = re.compile(r"^(?P<rule>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_RULES = (
    (
        re.compile(r"Expected `(?P<wanted>.+)`, got `(?P<found>.+)`$"),
        "{field} must be {wanted}, got {found}; send it so",
    ),
    (
        re.compile(r"Object missing required field `(?P<key>.+)`$"),
        "{field} must be given, it is missing; add it",
    ),
    (
        re.compile(r"Object contains unknown field `(?P<key>.+)`$"),
        "{field} is not a field of this request; leave it out or correct its name",
    ),
    (
        re.compile(r"Expected `(?P<type>\w+)` (?P<bound>[<>]=? .+)$"),
        "{field} must be {bound}; change it or leave it out",
    ),
)
_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
}


def invalid(error: msgspec.ValidationError) -> InputError:
    """Say a msgspec message as rule, value and what to do, with the path of the field at fault."""
    matched = _AT.match(str(error))
    rule, path = (matched["rule"], matched["path"]) if matched else (str(error), None)
    field = (path or "$").removeprefix("$").removeprefix(".")
    for pattern, sentence in _RULES:
        if found := pattern.match(rule):
            parts = found.groupdict()
            if "key" in parts:
                field = f"{field}.{parts['key']}".removeprefix(".")
            named = {name: _name(value) if name in ("wanted", "found") else value for name, value in parts.items()}
            return InputError(sentence.format(field=field or "the body", **named), field=field or None)
    return InputError(f"{field or 'the body'} must be as /docs says, got: {rule}; correct it", field=field or None)


def _name(types: str) -> str:
    return " or ".join(_NAMES.get(name.strip(), name.strip()) for name in types.split("|"))
