"""Files of a bench: queries in, results and pictures out, an earlier result back in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.errors import InputError
from serving.bench.settings import Settings

Result = dict[str, Any]

_FORMAT = 1
_NOT_COMPARED = ("seconds", "warmup_seconds", "seed")


def lines(path: Path) -> list[str]:
    """Read queries, one a line; InputError without any."""
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--queries must be a readable file in UTF-8, got {path} ({error})") from error
    if not found:
        raise InputError(f"--queries must have a query a line, {path} has none")
    return found


def expect_writable(*paths: Path | None) -> None:
    """Refuse a file that cannot be written before a run of minutes, not after it."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise InputError(f"a result must go to a file in a directory that exists, got {path}; correct it")


def save(settings: Settings, result: Result, before: Result | None) -> None:
    """Write what was asked for: the result as JSON, a picture of latency over load."""
    if settings.out is not None:
        _write(settings.out, json.dumps({"format": _FORMAT, **result}, indent=2).encode() + b"\n")
    if settings.picture is not None:
        from serving.bench.picture import latency_over_load  # matplotlib takes half a second

        _write(settings.picture, latency_over_load(result, before))


def earlier(path: Path, load: dict[str, Any]) -> Result:
    """Read a stored result; InputError where it is none, or of another load than this one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--compare must be a result of `rankyard bench --out`, got {path} ({error})") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not isinstance(found.get("load"), dict):
        raise InputError(f"--compare must be a result of `rankyard bench --out`, {path} is not; name another file")
    names = sorted((load.keys() | found["load"].keys()) - set(_NOT_COMPARED))
    other = [name for name in names if found["load"].get(name) != load.get(name)]
    if other:
        said = ", ".join(f"{name} {found['load'].get(name)} there and {load.get(name)} here" for name in other)
        raise InputError(f"only runs of the same load can be compared, {path} has {said}; repeat that one")
    return found


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"a result must go to a file that can be written, got {path} ({error.strerror})") from error
