"""Real MLflow: one migrated database for the session, copied for each workspace; one real server process."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry.bundle import Bundle
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.bundles import tiny_bundle
from tests.mlflow_server import mlflow_server

_FIRST_USE = """
import shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from registry.connection import connect
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.registry.conftest import register
tracking = Tracking(Workspace(Path('workspace')).open())
connect(tracking.uri)
assert tracking.models() == []
shutil.copyfile(tracking.workspace.database, sys.argv[2])
register(tracking, 'first')
tracking.resolve('first@candidate')
"""


@dataclass(frozen=True)
class FirstUse:
    """A new workspace made by a process of its own: what it printed, and what it left in its current directory."""

    printed: str
    left: list[str]
    empty_database: Path


@pytest.fixture(scope="session")
def first_use(tmp_path_factory: pytest.TempPathFactory) -> FirstUse:
    """MLflow needs seconds of migrations for a new database: they are paid once, here."""
    directory, database = tmp_path_factory.mktemp("first-use"), tmp_path_factory.mktemp("database") / "mlflow.db"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_USE, root, str(database)],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return FirstUse(done.stdout, [path.name for path in directory.iterdir()], database)


@pytest.fixture(scope="session")
def empty_database(first_use: FirstUse) -> Path:
    """An mlflow.db without content."""
    return first_use.empty_database


@pytest.fixture(scope="session")
def new_tracking(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Tracking]:
    """Make a workspace that is its own registry."""

    def make() -> Tracking:
        workspace = Workspace(tmp_path_factory.mktemp("workspace"))
        shutil.copyfile(empty_database, workspace.database)
        return Tracking(workspace)

    return make


@pytest.fixture(scope="session")
def tracking(new_tracking: Callable[[], Tracking]) -> Tracking:
    """A workspace that several tests share; each uses model names of its own."""
    return new_tracking()


@pytest.fixture(scope="session")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real tracking server."""
    with mlflow_server(tmp_path_factory.mktemp("server"), empty_database) as url:
        yield url


def register(tracking: Tracking, name: str, family: str = "intent", **changes: Any) -> tuple[Bundle, str]:
    """Seal a tiny bundle and register it as the line does; gives it and its version."""
    bundle = tiny_bundle(tracking.workspace.bundles, family, name=name, **changes)
    with tracking.training(bundle.manifest.family, name) as run:
        version = tracking.register(bundle, run)
    return bundle, version
