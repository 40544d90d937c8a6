"""A small intent model on a Triton server of the study's own, and gateways on it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import command
from experiments.servers import Server, gateway
from registry.workspace import Workspace
from serving.bench.arrivals import arrivals
from serving.bench.load import Plan, open_loop
from serving.bench.traffic import post, requests
from serving.triton import server
from serving.triton.server import Running
from training.demo_shop import generate

NAME = "shop-intent"
SEED = 7


@dataclass(frozen=True, slots=True)
class Place:
    """The workspace with the promoted model, and the server that has it; directory: for the gateways' files."""

    directory: Path
    workspace: Workspace
    repository: Path
    running: Running

    def still_running(self) -> Running:
        """Give the server as it runs now; RuntimeError where it is gone, as its own faults are not what is studied."""
        running = server.status(self.workspace.triton)
        if running is None:
            raise RuntimeError("Triton must run as long as the study does not end it, it is gone; run the study again")
        return running

    def gateway(self, name: str, **runtime: Any) -> AbstractContextManager[Server]:
        """Start a gateway on the server, without a cache; runtime: more of that section."""
        config = {
            "deployment": str(self.workspace.deployment),
            "cache": {"max_bytes": 0},
            "runtime": {"kind": "triton", "triton_url": self.running.grpc, **runtime},
        }
        return gateway(config, self.directory, name)


@contextmanager
def on_triton() -> Iterator[Place]:
    """Train, promote and deploy; the server is ended afterwards."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        workspace = Workspace(directory / "workspace")
        shop = generate(directory / "shop")
        command.train("intent", "intent_linear", shop.intent, NAME, workspace.root)
        place = ["--workspace", str(workspace.root)]
        command.rankyard("promote", NAME, *place)
        repository = workspace.triton / "repository"
        try:
            running = server.up(workspace.triton, repository)
            command.rankyard(
                "deploy", NAME, "--repository", str(repository), "--triton-url", f"http://{running.http}", *place
            )
            yield Place(directory, workspace, repository, running)
        finally:
            server.down(workspace.triton)


def loaded(url: str, seconds: float, rate: float) -> dict[str, Any]:
    """Ask distinct queries in an open loop; what was found."""
    bodies = post(url, "/v1/understand", lambda number: b'{"query":"where is my order %d"}' % number)
    plan = Plan(seconds=seconds, warmup_s=2.0, n_connections=200)
    found = open_loop(url, requests(bodies, itertools.count()), arrivals("poisson", rate, SEED), plan).figures()
    found.pop("histogram")
    return found
