"""REF: how a person or a configuration names a model: `NAME@alias`, `NAME/VERSION` or a bundle's directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from models.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_VERSION_LIKE = re.compile(r"v\d+")


@dataclass(frozen=True, slots=True)
class Reference:
    """A registered model's version, by alias or by number: exactly one of the two is set."""

    name: str
    alias: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}" if self.alias is not None else f"{self.name}/{self.version}"


def parse(ref: str) -> Reference | Path:
    """Read a REF; a directory that exists wins over a name. InputError where it is none of the three."""
    if ref and Path(ref).is_dir():
        return Path(ref)
    name, at, alias = ref.partition("@")
    if at and _NAME.fullmatch(name) and _ALIAS.fullmatch(alias):
        return Reference(name, alias=alias)
    name, slash, version = ref.partition("/")
    if slash and _NAME.fullmatch(name) and version.isdecimal() and version.isascii():
        return Reference(name, version=str(int(version)))
    raise InputError(f"a model is NAME@alias, NAME/VERSION or a bundle's directory that exists, got {ref!r}")


def check_name(name: str) -> str:
    """Give the name back where a model may be registered under it; InputError otherwise."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"a model's name must be letters, digits, dots, dashes and underscores, at most 128; got {name!r}"
        )
    return name


def check_alias(alias: str) -> str:
    """Give the alias back where a version may have it; InputError otherwise."""
    if not _ALIAS.fullmatch(alias) or _VERSION_LIKE.fullmatch(alias) or alias == "latest":
        raise InputError(
            "an alias must begin with a letter and be letters, digits, dashes and underscores, "
            f"not `latest` or like v1, got {alias!r}; champion is the usual one"
        )
    return alias
