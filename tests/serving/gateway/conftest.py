"""A real gateway in a process of its own, on what a promotion would have published."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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


def start(deployment: Path, config: dict | None = None, port: int = 0, program: str = PROGRAM) -> subprocess.Popen[str]:
    """A gateway whose requests may take long, where nothing else is said: a busy machine is late, and is not tested."""
    return subprocess.Popen(
        [sys.executable, "-c", program, str(deployment), repr({"deadline_ms": 20_000} | (config or {})), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def until(what: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for what comes soon, and on a busy machine later."""
    give_up_at = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


class Log:
    """What a gateway has written to standard error so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        self._lines.extend(self._process.stderr)

    def wait_for(self, said: str) -> None:
        """Wait until a line says this; one that has ended will not."""
        until(lambda: said in self.text or not self._reading.is_alive())
        assert said in self.text, self.text

    def end(self) -> str:
        """All of it, once the gateway has ended."""
        self._reading.join(60)
        return self.text

    @property
    def text(self) -> str:
        return "".join(self._lines)


@contextlib.contextmanager
def ending_well(process: subprocess.Popen[str], says: str = "") -> Iterator[tuple[str, Log]]:
    """Where a gateway is ready, as a line, and its log. SIGTERM ends it, and must end it well; it logs `says`, or
    nothing but that other programs keep the cores busy, which is no fault of its own.
    """
    with process:
        log = Log(process)
        try:
            line = process.stdout.readline()
            assert line.startswith("ready on http://127.0.0.1:"), (line, log.text)
            yield line, log
            if says:
                log.wait_for(says)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            said = log.end()
    assert process.returncode == 0
    faults = [line for line in said.splitlines() if "other programs leave the models hardly any time" not in line]
    assert says in said if says else not faults, said


def url_of(line: str) -> str:
    return line.split()[2].rstrip(",")


@contextlib.contextmanager
def gateway(deployment: Path, config: dict | None = None, *, says: str = "") -> Iterator[httpx.Client]:
    """A client of a gateway that is ended by SIGTERM, and must then end well; it logs `says`, or nothing.

    The client's `grpc` is the address of the gRPC port, where one is configured, and its `log` the gateway's.
    """
    with (
        ending_well(start(deployment, config), says) as (line, log),
        httpx.Client(base_url=url_of(line), timeout=60) as client,
    ):
        client.grpc = line.partition("grpc://")[2].partition(",")[0]
        client.log = log
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
    with gateway(directory, {"limits": {"max_candidates": 50}}) as opened:
        yield opened
