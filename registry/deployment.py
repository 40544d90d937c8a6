"""What gateways read, and all they need: `bundles/DIGEST/` and, for every name, a pointer `aliases/NAME.json`.

Imports no MLflow. A pointer is replaced in one step, after every bundle it speaks of is in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import BundleError, NotFoundError, WorkspaceError
from models.manifest import FamilyName
from registry.bundle import Bundle, copy_bundle, open_bundle
from registry.files import replace
from registry.references import Reference, check_name, parse

_DIGEST_SHOWN = 12


class Release(BaseModel):
    """A version that an alias means, and the digest of its bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    digest: str


class Pointer(BaseModel):
    """All of `aliases/NAME.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    family: FamilyName
    aliases: dict[str, Release]


class Resolved(NamedTuple):
    """A verified bundle and what its answers are signed with; a bare directory has its digest's start as version."""

    name: str
    version: str
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class Published:
    """A version to publish: its number and its bundle."""

    version: str
    bundle: Bundle


def publish(deployment: Path, name: str, aliases: Mapping[str, Published]) -> Pointer:
    """Copy every bundle in, then replace the pointer: `aliases` is all that `name` means from now on.

    The pointer's family is the champion's, or of any alias where there is no champion.
    """
    if not aliases:
        raise NotFoundError(f"{name} must have an alias to be published, it has none; promote a version first")
    for published in aliases.values():
        place(deployment, published.bundle)
    leading = aliases.get("champion") or next(iter(aliases.values()))
    pointer = Pointer(
        name=check_name(name),
        family=leading.bundle.manifest.family,
        aliases={alias: Release(version=p.version, digest=p.bundle.digest) for alias, p in sorted(aliases.items())},
    )
    _write(_file(deployment, name), pointer.model_dump_json(indent=2) + "\n")
    return pointer


def place(deployment: Path, bundle: Bundle) -> Bundle:
    """Copy a bundle in without publishing it; the copy is verified."""
    return copy_bundle(bundle, deployment / "bundles")


def names(deployment: Path) -> list[Pointer]:
    """Every pointer, by name; none where nothing was published."""
    return [_read(file) for file in sorted((deployment / "aliases").glob("*.json"))]


def pointer(deployment: Path, name: str) -> Pointer:
    """One name's pointer; NotFoundError names those that exist."""
    file = _file(deployment, name)
    if not file.is_file():
        known = [found.name for found in names(deployment)]
        raise NotFoundError(
            f"a model must be published to be served, {deployment} has {', '.join(known) or 'none'}, got {name!r}; "
            f"run `rankyard promote {name}`"
        )
    return _read(file)


def resolve(deployment: Path, ref: str) -> Resolved:
    """Open the bundle that NAME@alias, NAME/VERSION (of those published) or a directory means, and verify it."""
    reference = parse(ref)
    if isinstance(reference, Path):
        bundle = open_bundle(reference)
        return Resolved(bundle.manifest.name, bundle.digest[:_DIGEST_SHOWN], bundle)
    known = pointer(deployment, reference.name)
    release = _release(known, reference)
    bundle = open_bundle(deployment / "bundles" / release.digest)
    if bundle.digest != release.digest:
        raise BundleError(
            f"{bundle.path} must have the digest {release.digest}, it has {bundle.digest}; promote the version again"
        )
    return Resolved(known.name, release.version, bundle)


def _release(known: Pointer, reference: Reference) -> Release:
    for alias, release in known.aliases.items():
        if reference.alias == alias or reference.version == release.version:
            return release
    published = ", ".join(f"{alias} (version {release.version})" for alias, release in known.aliases.items())
    raise NotFoundError(f"{known.name} has the published aliases {published}, got {reference}; promote that version")


def _file(deployment: Path, name: str) -> Path:
    return deployment / "aliases" / f"{check_name(name)}.json"


def _read(file: Path) -> Pointer:
    try:
        return Pointer.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise WorkspaceError(f"{file} must be a pointer as written by a promotion, got: {reason}") from error


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace(file, text)
    except OSError as error:
        raise WorkspaceError(
            f"a pointer must fit on the disk of {file.parent}, got: {error.strerror}; free some space"
        ) from error
