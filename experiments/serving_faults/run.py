"""A gateway on Triton under load, whose server is killed and started again every ten seconds.

python -m experiments.serving_faults.run [--seconds S] [--rate N]    writes results/triton_killed.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

from experiments import command
from experiments.report import Row, save
from experiments.servers import exchange, gateway
from models.errors import RankyardError
from registry.workspace import Workspace
from serving.bench.arrivals import arrivals
from serving.bench.load import Plan, open_loop
from serving.bench.traffic import post, requests
from serving.triton import server
from training.demo_shop import generate

HERE = Path(__file__).parent
NAME = "shop-intent"
KILLS_EVERY_S = 10.0
METRICS = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"


class Killer(threading.Thread):
    """Kills the server every ten seconds and starts it again; notes how often the gateway was degraded meanwhile."""

    def __init__(self, directory: Path, repository: Path, url: str) -> None:
        super().__init__(daemon=True)
        self._directory, self._repository, self._url = directory, repository, url
        self.stopping = threading.Event()
        self.n_kills = 0
        self.looks: list[bool] = []

    def run(self) -> None:
        """Kill, start, and look ten times a second, until told to stop."""
        while not self.stopping.is_set():
            begin_s = time.monotonic()
            while time.monotonic() - begin_s < KILLS_EVERY_S and not self.stopping.wait(0.1):
                self._look()
            running = server.status(self._directory)
            if self.stopping.is_set() or running is None:
                continue
            os.kill(running.pid, signal.SIGKILL)
            self.n_kills += 1
            starting = threading.Thread(target=self._start)
            starting.start()
            while starting.is_alive():
                self._look()
                time.sleep(0.1)

    def _start(self) -> None:
        while not self.stopping.is_set():
            try:
                server.up(self._directory, self._repository)
                return
            except RankyardError:
                time.sleep(0.2)

    def _look(self) -> None:
        _, body = exchange(self._url, METRICS)
        self.looks.append(b"rankyard_runtime_degraded 1.0" in body)


def main() -> None:
    """Train, deploy, serve, load and kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        workspace = Workspace(Path(directory) / "workspace")
        shop = generate(Path(directory) / "shop")
        command.train("intent", "intent_linear", shop.intent, NAME, workspace.root)
        place = ["--workspace", str(workspace.root)]
        command.rankyard("promote", NAME, *place)
        repository = workspace.triton / "repository"
        try:
            running = server.up(workspace.triton, repository)
            command.rankyard(
                "deploy", NAME, "--repository", str(repository), "--triton-url", f"http://{running.http}", *place
            )
            config = {
                "deployment": str(workspace.deployment),
                "cache": {"max_bytes": 0},
                "runtime": {"kind": "triton", "triton_url": running.grpc},
            }
            with gateway(config, Path(directory), "gateway") as serving:
                report(serving.url, Killer(workspace.triton, repository, serving.url), options.seconds, options.rate)
        finally:
            server.down(workspace.triton)


def report(url: str, killer: Killer, seconds: float, rate: float) -> None:
    """Load the gateway while the killer works, and save what was found."""
    bodies = post(url, "/v1/understand", lambda number: b'{"query":"where is my order %d"}' % number)
    plan = Plan(seconds=seconds, warmup_s=2.0, n_connections=200)
    killer.start()
    found = open_loop(url, requests(bodies, itertools.count()), arrivals("poisson", rate, 7), plan).figures()
    killer.stopping.set()
    killer.join()
    found.pop("histogram")
    found |= {"kills": killer.n_kills, "degraded_share": round(sum(killer.looks) / max(1, len(killer.looks)), 4)}
    row = Row(
        data=f"Triton killed {killer.n_kills} times in {seconds:.0f} s, {rate:.0f} requests/s",
        configuration="gateway on Triton",
        metric="failed requests",
        value=found["failed"],
        low=found["failed"],
        high=found["failed"],
        seeds=[7],
        seconds=seconds,
        served_as="float32",
        target=0,
        at_most=True,
    )
    save(HERE / "results" / "triton_killed.json", [row], "python -m experiments.serving_faults.run", found=found)
    print(found)


if __name__ == "__main__":
    main()
