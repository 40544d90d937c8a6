"""The one directory that holds everything a run writes, and its layout."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.errors import WorkspaceError


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths below `root`; nothing is created before `open` or the first write."""

    root: Path

    @property
    def database(self) -> Path:
        """MLflow's SQLite file."""
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """Where MLflow keeps artifacts when the workspace is its own registry."""
        return self.root / "artifacts"

    @property
    def bundles(self) -> Path:
        """Every bundle made or fetched here, one directory a digest."""
        return self.root / "bundles"

    @property
    def checkpoints(self) -> Path:
        """Unfinished trainings, one directory a model name."""
        return self.root / "checkpoints"

    @property
    def tuning(self) -> Path:
        """Optuna's storage, and one directory a study."""
        return self.root / "tuning"

    @property
    def deployment(self) -> Path:
        """What gateways read: `bundles/DIGEST/` and `aliases/NAME.json`."""
        return self.root / "deployment"

    @property
    def triton(self) -> Path:
        """The local Triton server's model repository, backends, state and log."""
        return self.root / "triton"

    def open(self) -> Workspace:
        """Create the directory and prove that it can be written; WorkspaceError otherwise."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.root, prefix=".write-probe-"):
                pass
        except OSError as error:
            raise WorkspaceError(
                f"the workspace must be a directory that can be written, got {self.root} ({error.strerror}); "
                "name another one with --workspace"
            ) from error
        return self

    @contextmanager
    def lock(self, purpose: str) -> Iterator[None]:
        """Hold the lock `purpose` for this workspace; WorkspaceError at once when another process holds it."""
        path = self.open().root / "locks" / f"{purpose}.lock"
        path.parent.mkdir(exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "?"
                raise WorkspaceError(
                    f"only one process at a time may run `{purpose}` in {self.root}, process {holder} does; "
                    "wait for it to end"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
