"""A real gateway in a process of its own, on what a promotion would have published."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import xgboost

from models.ranking import RankingModel
from registry.deployment import Published, publish
from serving.runtime.protocol import ServedModel
from tests.bundles import tiny_bundle
from tests.tree_bundle import grow, tree_bundle

PROGRAM = """
import sys
from pathlib import Path
from models.config import validate
from models.errors import RankyardError
from serving.gateway.config import GatewayConfig
from serving.gateway.server import run
config = validate(GatewayConfig, eval(sys.argv[2]))
try:
    run(config, Path(sys.argv[1]), None, "127.0.0.1", int(sys.argv[3]), say=lambda line: print(line, flush=True))
except RankyardError as error:
    print(error.message, file=sys.stderr)
    sys.exit(error.exit_status)
"""


@pytest.fixture(scope="session")
def deployment(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("deployment")
    bundles = tmp_path_factory.mktemp("bundles")
    publish(directory, "shop-query", {"champion": Published("3", tiny_bundle(bundles, "intent"))})
    publish(directory, "shop-ltr", {"champion": Published("2", tiny_bundle(bundles, "ranking"))})
    return directory


def start(deployment: Path, config: dict | None = None, port: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(deployment), repr(config or {}), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


@contextlib.contextmanager
def ending_well(process: subprocess.Popen[str], timeout_s: float, says: str = "") -> Iterator[str]:
    """Where a gateway is ready, as a line. SIGTERM ends it, and must end it well; it logs `says`, or nothing."""
    try:
        line = process.stdout.readline()
        assert line.startswith("ready on http://127.0.0.1:"), process.communicate(timeout=5)
        yield line
    finally:
        process.terminate()
        _, said = process.communicate(timeout=timeout_s)
    assert process.returncode == 0
    assert says in said if says else not said, said


def url_of(line: str) -> str:
    return line.split()[2].rstrip(",")


@contextlib.contextmanager
def gateway(deployment: Path, config: dict | None = None, *, says: str = "") -> Iterator[httpx.Client]:
    """A client of a gateway that is ended by SIGTERM, and must then end well; it logs `says`, or nothing.

    The client's `grpc` is the address of the gRPC port, where one is configured.
    """
    with (
        ending_well(start(deployment, config), 20, says) as line,
        httpx.Client(base_url=url_of(line), timeout=10) as client,
    ):
        client.grpc = line.partition("grpc://")[2].partition(",")[0]
        yield client


@pytest.fixture(scope="session")
def client(deployment) -> Iterator[httpx.Client]:
    with gateway(
        deployment, {"limits": {"max_body_bytes": 100_000, "max_queries": 20, "max_candidates": 50}}
    ) as opened:
        yield opened


@pytest.fixture(scope="session")
def booster() -> xgboost.Booster:
    return grow(30)


@pytest.fixture(scope="session")
def tree_served(tmp_path_factory, booster) -> ServedModel:
    return ServedModel("trees", "4", tree_bundle(tmp_path_factory.mktemp("trees"), booster))


@pytest.fixture(scope="session")
def tree_model(tree_served) -> RankingModel:
    return RankingModel(tree_served.bundle.manifest)


@pytest.fixture(scope="session")
def tree_client(tmp_path_factory, tree_served) -> Iterator[httpx.Client]:
    directory = tmp_path_factory.mktemp("deployment")
    publish(directory, "trees", {"champion": Published("4", tree_served.bundle)})
    with gateway(directory, {"limits": {"max_candidates": 50}, "deadline_ms": 20_000}) as opened:
        yield opened
