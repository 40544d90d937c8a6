"""What a sweep of `rankyard tune triton` found, kept beside the deployment: every later deploy of that model uses it.

`DEPLOYMENT/triton/NAME/TARGET.json`, where TARGET says what was measured: `int8.python`, `float32.onnxruntime.gpu`.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from models.config import Config
from models.errors import WorkspaceError
from registry.bundle import Bundle
from registry.files import replace
from registry.references import check_name
from serving.triton.settings import Scheduling, TritonSettings


class Kept(Config):
    """The scheduling to use, and where it comes from.

    version: of the model, when it was measured. p99_limit_ms: what it had to hold. throughput_per_s,
    default_throughput_per_s: what it and the default did within that. n_cores: of the machine. run_id: of MLflow.
    """

    name: str
    version: str
    target: str
    scheduling: Scheduling
    p99_limit_ms: float
    throughput_per_s: float
    default_throughput_per_s: float
    n_cores: int
    created: datetime
    run_id: str

    def __str__(self) -> str:
        """Name it in a few words: what of, when, for which p99."""
        return f"tuned on {self.created.date()} with version {self.version} for a p99 of {self.p99_limit_ms:g} ms"


def target(bundle: Bundle, settings: TritonSettings) -> str:
    """What a measurement is of: variant, backend, and the GPU where one runs it."""
    parts = [settings.variant or bundle.variant, settings.backend]
    if settings.needs_gpu:
        parts.append("gpu" if settings.tensorrt is None else f"tensorrt-{settings.tensorrt}")
    return ".".join(parts)


def keep(deployment: Path, kept: Kept) -> Path:
    """Write it, in place of what was kept before; gives the file."""
    file = _file(deployment, kept.name, kept.target)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace(file, kept.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise WorkspaceError(
            f"what was tuned must fit on the disk of {deployment}, got: {error.strerror}; free some space"
        ) from error
    return file


def read(deployment: Path, name: str, of: str) -> Kept | None:
    """Give what is kept for a target, where there is something; WorkspaceError where it cannot be understood."""
    file = _file(deployment, name, of)
    try:
        return Kept.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise WorkspaceError(f"{file} must be as `rankyard tune triton` wrote it, got: {reason}; remove it") from error


def forget(deployment: Path, name: str, of: str) -> bool:
    """Go back to the default from the next deploy on; False where nothing was kept."""
    file = _file(deployment, name, of)
    is_kept = file.exists()
    file.unlink(missing_ok=True)
    return is_kept


def applied(kept: Kept | None, settings: TritonSettings) -> TritonSettings:
    """Put what is kept in place of defaults; what was given stands."""
    if kept is None:
        return settings
    found = {
        name: getattr(kept.scheduling, name)
        for name in Scheduling.model_fields
        if name not in settings.model_fields_set
    }
    return settings.model_copy(update=found)


def _file(deployment: Path, name: str, of: str) -> Path:
    return deployment / "triton" / check_name(name) / f"{of}.json"
