"""Reading a configuration: YAML by path or by the bare name of a shipped one, `--set` on top, all mistakes at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


C = TypeVar("C", bound=BaseModel)


def read(name_or_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read YAML by path or shipped name (`ranking_xgboost`) and apply `a.b=c` overrides; ConfigError otherwise."""
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        path = _shipped(name_or_path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"a configuration must be a readable file, got {path} ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} must be YAML in UTF-8, got: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return raw


def validate(schema: type[C], raw: Mapping[str, Any]) -> C:
    """Check `raw` against `schema`; one ConfigError lists every mistake with its path, its rule and the value found."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        mistakes = [_mistake(schema, details) for details in error.errors()]
        raise ConfigError("; ".join(mistakes), field=_path(error.errors()[0]["loc"])) from error


def shipped() -> list[str]:
    """Names of the configurations that come with rankyard."""
    return sorted(
        file.name.removesuffix(".yaml") for file in resources.files("configs").iterdir() if file.name.endswith(".yaml")
    )


def _shipped(name: str) -> Path:
    if name not in shipped():
        raise ConfigError(
            f"a configuration is a file or one of {', '.join(shipped())}; got {name}{_suggest(name, shipped())}"
        )
    return Path(str(resources.files("configs") / f"{name}.yaml"))


def _override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"--set takes KEY=VALUE with dots between keys, got {override!r}")
    *parents, last = key.split(".")
    for parent in parents:
        child = raw.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override} needs {parent} to hold keys, it is {child!r}", field=key)
        raw = child
    try:
        raw[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key} must have a YAML value, got {value!r}", field=key) from error


def _mistake(schema: type[BaseModel], details: Any) -> str:
    path, kind, value = _path(details["loc"]), details["type"], details["input"]
    if kind == "extra_forbidden":
        suggested = _suggest(str(details["loc"][-1]), _keys(schema)) or "; leave it out"
        return f"{path} is not a key of this configuration{suggested}"
    if kind == "missing":
        return f"{path} must be given; add it"
    if kind in _RULES:
        bounds = {
            name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in details.get("ctx", {}).items()
        }
        rule = _RULES[kind].format(**bounds)
        return f"{path} must be {rule}, got {value!r:.100}; correct it"
    rule = details["msg"].removeprefix("Value error, ")
    # A rule on several keys says itself what it found; all of them may hold a password.
    return f"{path}: {rule}" if isinstance(value, dict) else f"{path}: {rule}, got {value!r:.100}"


_RULES = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type"), "keys and values"),
    "string_type": "a text",
    "path_type": "a path",
    "literal_error": "{expected}",
    "union_tag_invalid": "of a {discriminator} {expected_tags}",
}
"""Pydantic's kinds of mistakes, in a person's words."""


def _path(location: Sequence[int | str]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or "configuration"


def _keys(schema: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        keys.append(name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys.extend(_keys(inner))
    return keys


def _suggest(found: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(found, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
