"""A Triton model repository made of bundles: written aside, flushed, renamed, loaded, and proved after loading."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays, collate, split
from models.errors import ParityError, WorkspaceError
from registry import golden
from registry.bundle import VARIANTS, Bundle, sha256
from registry.deployment import resolve
from serving.triton.config import TritonSettings, config_pbtxt
from serving.triton.http import TritonHttp

CONFIG = "config.pbtxt"
_BACKEND_MODEL = Path(__file__).parent / "backend_model.py"


@dataclass(frozen=True, slots=True)
class Deployed:
    """A version in a repository; `is_ready` where a server has loaded it and it answered as the bundle does."""

    name: str
    version: str
    path: Path
    is_ready: bool


def deploy(
    deployment: Path, names: list[str], repository: Path, settings: TritonSettings, triton_url: str | None = None
) -> list[Deployed]:
    """Write the champions of `names`, and where there is a server load them and prove their answers.

    All bundles are verified before the first is written. UnavailableError where the server cannot be reached,
    ParityError where its answers differ: the version served before is loaded again then.
    """
    resolved = [resolve(deployment, f"{name}@champion") for name in names]
    server = None if triton_url is None else TritonHttp(triton_url)
    if server is not None:
        server.expect_ready()
    done = []
    for name, version, bundle in resolved:
        path, previous_config = write(repository, name, version, bundle, settings)
        if server is not None:
            try:
                server.load(name)
                prove(server, name, version, bundle)
            except Exception:
                _restore(repository / name / CONFIG, previous_config)
                if previous_config is not None:
                    server.load(name)
                raise
        done.append(Deployed(name, version, path, is_ready=server is not None))
    return done


def write(
    repository: Path, name: str, version: str, bundle: Bundle, settings: TritonSettings
) -> tuple[Path, str | None]:
    """Put `version` of `name` into the repository, whole or not at all.

    Gives the version's directory and the text of the `config.pbtxt` that was there before. A version that stands
    already is never overwritten: WorkspaceError where its file differs.
    """
    config = config_pbtxt(name, version, bundle, settings)
    model_directory = repository / name
    try:
        model_directory.mkdir(parents=True, exist_ok=True)
        _place_version(model_directory / version, bundle, settings)
        previous = model_directory / CONFIG
        before = previous.read_text(encoding="utf-8") if previous.exists() else None
        _replace(previous, config)
    except OSError as error:
        raise WorkspaceError(
            f"a model repository must be a directory that can be written, got {repository} ({error.strerror})"
        ) from error
    return model_directory / version, before


def prove(server: TritonHttp, name: str, version: str, bundle: Bundle) -> None:
    """Prove that the server answers the golden rows, and a batch of them as it answers each alone; ParityError else."""

    def run(arrays: Arrays) -> dict[str, NDArray[np.generic]]:
        return server.infer(name, version, arrays, bundle.manifest.signature)

    golden.check(bundle, bundle.variant, run)
    signature = bundle.manifest.signature
    rows = [row.encoded for row in golden.read(bundle)]
    together = split(run(collate(rows, signature)), rows, signature)
    for index, (row, joined) in enumerate(zip(rows, together, strict=True)):
        alone = split(run(collate([row], signature)), [row], signature)[0]
        for output, expected in alone.items():
            # Outputs of tokens are padded to the longest text of the batch.
            found = joined[output][: expected.shape[0]] if expected.ndim else joined[output]
            difference = golden.largest_difference(expected, found)
            if not difference <= bundle.manifest.tolerance:
                raise ParityError(
                    f"Triton must answer a batch as it answers each row alone to {bundle.manifest.tolerance:g}, golden "
                    f"row {index} of {name}/{version} differs by {difference:.3g} in {output}"
                )


def _place_version(target: Path, bundle: Bundle, settings: TritonSettings) -> None:
    files = {VARIANTS[bundle.variant]: bundle.model_file()}
    if settings.backend == "python":
        files["model.py"] = _BACKEND_MODEL
    if target.exists():
        for name, source in files.items():
            if not (target / name).exists() or sha256(target / name) != sha256(source):
                raise WorkspaceError(
                    f"{target} must hold {name} of the bundle {bundle.digest[:12]}, it holds another one; versions are "
                    "never overwritten, remove the directory or promote a new version"
                )
        return
    aside = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    try:
        for name, source in files.items():
            shutil.copyfile(source, aside / name)
            _flush(aside / name)
        aside.chmod(0o755)
        _flush(aside)
        aside.rename(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", prefix=".", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
    _flush(path.parent)


def _restore(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
    else:
        _replace(path, text)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
