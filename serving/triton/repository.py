"""A Triton model repository made of bundles: written aside, flushed, renamed, loaded, and proved after loading.

- `NAME/config.pbtxt`: which version is served, and by which backend;
- `NAME/VERSION/model.onnx`: the variant asked for, or the bundle's own choice of float32 and int8;
- `NAME/warmup/VERSION/`: a row of every input, which the model runs before it is asked;
- `NAME/VERSION/model.py`: runs it for Triton's Python backend; the onnxruntime backend has no use for it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays, collate, split
from models.errors import ParityError, RankyardError, UnavailableError, WorkspaceError
from registry import golden
from registry.bundle import Bundle, sha256
from registry.deployment import resolve
from registry.files import flush, replace
from serving.triton import kept, warmup
from serving.triton.config import config_pbtxt
from serving.triton.http import TritonHttp
from serving.triton.settings import TritonSettings

CONFIG = "config.pbtxt"
MODEL = "model.onnx"

_BACKEND_MODEL = "model.py"
_BACKEND_SOURCE = Path(__file__).parent / "backend_model.py"


@dataclass(frozen=True, slots=True)
class Deployed:
    """A version in a repository.

    is_ready: a server has loaded it and it answered as the bundle does. kept: the sweep that its scheduling is from.
    """

    name: str
    version: str
    path: Path
    is_ready: bool
    kept: kept.Kept | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What `write` has done: a version's directory, whether it is new, and the text of `config.pbtxt` before."""

    path: Path
    is_new: bool
    previous_config: str | None


def deploy(
    deployment: Path, names: list[str], repository: Path, settings: TritonSettings, triton_url: str | None = None
) -> list[Deployed]:
    """Write the champions of `names`, and where there is a server load them and prove their answers.

    All bundles are verified before the first is written. What a sweep has found for a model stands where `settings`
    says nothing. triton_url: the server's HTTP address; UnavailableError where it cannot be reached, and whatever
    `install` refuses a model for.
    """
    resolved = [resolve(deployment, f"{name}@champion") for name in names]
    server = None if triton_url is None else TritonHttp(triton_url)
    if server is not None:
        server.expect_live()
    deployed = []
    for name, version, bundle in resolved:
        found = kept.read(deployment, name, kept.target(bundle, settings))
        fitted = kept.applied(found, settings)
        if server is None:
            path = write(repository, name, version, bundle, fitted).path
        else:
            path = install(server, repository, name, version, bundle, fitted)
        deployed.append(Deployed(name, version, path, is_ready=server is not None, kept=found))
    return deployed


def install(
    server: TritonHttp, repository: Path, name: str, version: str, bundle: Bundle, settings: TritonSettings
) -> Path:
    """Write a version, load it and prove its answers; gives its directory.

    RankyardError where the server cannot load it, WorkspaceError where it reads another repository, ParityError where
    it answers otherwise than the bundle: the repository is then as it was, and the server serves what it served before.
    """
    written = write(repository, name, version, bundle, settings)
    try:
        _load(server, repository, name)
        prove(server, name, version, bundle, settings.variant, settings.tensorrt)
    except BaseException:
        _undo(server, repository / name, written)
        raise
    return written.path


def write(repository: Path, name: str, version: str, bundle: Bundle, settings: TritonSettings) -> Written:
    """Put `version` of `name` into the repository, whole or not at all.

    A version that stands already is never overwritten: WorkspaceError where its model is another one.
    """
    directory = repository / name
    path = directory / version
    try:
        previous = directory / CONFIG
        previous_config = previous.read_text(encoding="utf-8") if previous.exists() else None
        config = config_pbtxt(name, version, bundle, settings, previous_config)
        directory.mkdir(parents=True, exist_ok=True)
        is_new = _place(path, bundle.model_file(settings.variant))
        warmup.write(directory, version, bundle)
        replace(previous, config)
    except OSError as error:
        raise WorkspaceError(
            f"a model repository must be a directory that can be written, got {repository} ({error.strerror}); "
            "name another one with --repository or free some space"
        ) from error
    return Written(path, is_new, previous_config)


def _load(server: TritonHttp, repository: Path, name: str) -> None:
    try:
        server.load(name)
    except UnavailableError:
        raise
    except RankyardError as error:
        if server.sees(name):
            raise
        raise WorkspaceError(
            f"{server.url} must be a Triton server that reads {repository}, it finds no {name} in its own repository; "
            "name that with --repository, or the server that reads this one with --triton-url"
        ) from error


def prove(
    server: TritonHttp,
    name: str,
    version: str,
    bundle: Bundle,
    variant: str | None = None,
    precision: str | None = None,
) -> None:
    """Prove that the server answers the golden rows, and a batch of them as it answers each alone; ParityError else.

    variant: the bundle's own choice without one. precision: in which it runs, where that is not the variant's own.
    """

    def run(arrays: Arrays) -> dict[str, NDArray[np.generic]]:
        return server.infer(name, version, arrays, bundle.manifest.signature)

    variant = variant or bundle.variant
    tolerance = bundle.manifest.tolerance_of(precision or variant)
    golden.check(bundle, variant, run, tolerance)
    signature = bundle.manifest.signature
    rows = [row.encoded for row in golden.read(bundle)]
    together = split(run(collate(rows, signature)), rows, signature)
    for index, (row, joined) in enumerate(zip(rows, together, strict=True)):
        alone = split(run(collate([row], signature)), [row], signature)[0]
        for output, expected in alone.items():
            # Outputs of tokens are padded to the longest text of the batch.
            found = joined[output][: expected.shape[0]] if expected.ndim else joined[output]
            difference = golden.largest_difference(expected, found)
            if not difference <= tolerance:
                raise ParityError(
                    f"Triton must answer a batch as it answers each row alone to {tolerance:g}, golden row {index} of "
                    f"{name}/{version} differs by {difference:.3g} in {output}"
                )


def _undo(server: TritonHttp, directory: Path, written: Written) -> None:
    """Take a version back. The failure that led here is the one to tell, whatever the server says to this."""
    if written.previous_config is None:
        (directory / CONFIG).unlink()
    else:
        replace(directory / CONFIG, written.previous_config)
    with contextlib.suppress(RankyardError):
        if written.previous_config is None:
            server.unload(directory.name)
        else:
            server.load(directory.name)
    if written.is_new:
        shutil.rmtree(written.path)
        warmup.remove(directory, written.path.name)
    if written.previous_config is None and not any(directory.iterdir()):
        directory.rmdir()


def _place(target: Path, model: Path) -> bool:
    """Put a version's files in place; whether they are new. `model.py` is this program's own, and kept up to date."""
    source = _BACKEND_SOURCE.read_text(encoding="utf-8")
    if target.exists():
        found = sha256(target / MODEL) if (target / MODEL).exists() else "nothing"
        if found != (wanted := sha256(model)):
            raise WorkspaceError(
                f"{target / MODEL} must have sha256 {wanted}, as the bundle has it, it has {found}; a version is "
                "never overwritten, remove the directory or promote a new version"
            )
        replace(target / _BACKEND_MODEL, source)
        return False
    aside = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    try:
        shutil.copyfile(model, aside / MODEL)
        flush(aside / MODEL)
        replace(aside / _BACKEND_MODEL, source)
        aside.chmod(0o755)
        aside.rename(target)
        flush(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True
