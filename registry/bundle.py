"""A bundle on disk: sealed once, verified on every opening. Imports no MLflow, so that gateways can use it."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from models.errors import BundleError, WorkspaceError
from models.manifest import READABLE_FORMATS, Manifest
from registry.files import flush

MANIFEST = "manifest.json"
MODEL = "model.onnx"
MODEL_INT8 = "model.int8.onnx"
MODEL_FP16 = "model.fp16.onnx"
VARIANTS = {"float32": MODEL, "int8": MODEL_INT8, "fp16": MODEL_FP16}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: its directory, its manifest and its digest (sha256 of manifest.json, so of everything)."""

    path: Path
    manifest: Manifest
    digest: str

    @property
    def variant(self) -> str:
        """The variant to serve: int8 where quantizing kept its loss budget, float32 otherwise; fp16 only when named."""
        return "int8" if MODEL_INT8 in self.manifest.files else "float32"

    def model_file(self, variant: str | None = None) -> Path:
        """The ONNX file of a variant (None: the one to serve); BundleError where the bundle lacks it."""
        name = VARIANTS[variant or self.variant]
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.path} must hold {name} to serve the variant {variant}, it has {sorted(self.manifest.files)}"
            )
        return self.path / name


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def draft(bundles: Path) -> Iterator[Path]:
    """Give an empty directory beside the finished bundles; it is gone afterwards unless `seal` moved it.

    A full disk, or any other failure to write, ends as WorkspaceError and leaves nothing behind.
    """
    directory: Path | None = None
    try:
        bundles.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=".draft-", dir=bundles))
        yield directory
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG}:
            raise
        raise WorkspaceError(
            f"a bundle must fit on the disk of {bundles}, got: {error.strerror}; free some space"
        ) from error
    finally:
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def seal(directory: Path, manifest: Manifest, bundles: Path) -> Bundle:
    """Write the manifest over the files of a draft, flush, and move it to `bundles/DIGEST` in one step."""
    names = sorted(path.name for path in directory.iterdir() if path.name != MANIFEST)
    manifest = manifest.model_copy(update={"files": {name: sha256(directory / name) for name in names}})
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for path in (*directory.iterdir(), directory):
        flush(path)
    digest = sha256(directory / MANIFEST)
    return Bundle(_place(directory, bundles / digest), manifest, digest)


def open_bundle(path: Path) -> Bundle:
    """Verify a bundle's format and every digest; BundleError names the file and both digests."""
    manifest = read_manifest(path)
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    for name, expected in manifest.files.items():
        if name not in present:
            raise BundleError(f"{path / name} must exist, the manifest lists it; fetch the bundle again", field=name)
        found = sha256(path / name)
        if found != expected:
            raise BundleError(
                f"{path / name} must have sha256 {expected}, it has {found}; fetch the bundle again", field=name
            )
    if unlisted := sorted(present - set(manifest.files)):
        raise BundleError(f"{path} must hold only what its manifest lists, it also has {unlisted}; remove them")
    return Bundle(path, manifest, sha256(path / MANIFEST))


def read_manifest(path: Path) -> Manifest:
    """Read manifest.json alone, without the digests of the other files; BundleError where it cannot be understood."""
    file = path / MANIFEST
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"a bundle is a directory with {MANIFEST}, {path} has none") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} must be JSON, got: {error}") from error
    found = raw.get("format") if isinstance(raw, dict) else None
    if found not in READABLE_FORMATS:
        formats = " or ".join(map(str, READABLE_FORMATS))
        raise BundleError(
            f"{file} must have format {formats}, it has {found}; train again or use the rankyard that wrote it"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file} breaks the rule of `{where}`: {first['msg']}", field=where) from error


def copy_bundle(bundle: Bundle, bundles: Path) -> Bundle:
    """Copy a bundle to `bundles/DIGEST`, whole or not at all; the copy is verified."""
    target = bundles / bundle.digest
    if not target.exists():
        with draft(bundles) as directory:
            for name in (MANIFEST, *bundle.manifest.files):
                shutil.copyfile(bundle.path / name, directory / name)
                flush(directory / name)
            flush(directory)
            _place(directory, target)
    return open_bundle(target)


def _place(directory: Path, target: Path) -> Path:
    """Rename into place; a target that exists already has, by its name, the same content."""
    if not target.exists():
        directory.chmod(0o755)
        directory.rename(target)
        flush(target.parent)
    return target
