"""The server is killed and started again every ten seconds."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from experiments.report import Row
from experiments.servers import scraped
from experiments.serving_faults.place import SEED, Place, loaded
from models.errors import RankyardError
from serving.triton import server

KILLS_EVERY_S = 10.0


def killed(place: Place, seconds: float, rate: float) -> tuple[list[Row], dict[str, Any]]:
    """Load a gateway while the killer works."""
    place.still_running()
    with place.gateway("killed") as serving:
        killer = Killer(place, serving.url)
        killer.start()
        found = loaded(serving.url, seconds, rate)
        killer.stopping.set()
        killer.join()
    found |= {"kills": killer.n_kills, "degraded_share": round(sum(killer.looks) / max(1, len(killer.looks)), 4)}
    row = Row(
        data=f"Triton killed {killer.n_kills} times in {seconds:.0f} s, {rate:.0f} requests/s",
        configuration="gateway on Triton",
        metric="failed requests",
        value=found["failed"],
        low=found["failed"],
        high=found["failed"],
        seeds=[SEED],
        seconds=seconds,
        served_as="float32",
        target=0,
        at_most=True,
    )
    return [row], found


class Killer(threading.Thread):
    """Kills the server every ten seconds and starts it again; notes how often the gateway was degraded meanwhile."""

    def __init__(self, place: Place, url: str) -> None:
        super().__init__(daemon=True)
        self._place, self._url = place, url
        self.stopping = threading.Event()
        self.n_kills = 0
        self.looks: list[bool] = []

    def run(self) -> None:
        """Kill, start, and look ten times a second, until told to stop."""
        while not self.stopping.is_set():
            begin_s = time.monotonic()
            while time.monotonic() - begin_s < KILLS_EVERY_S and not self.stopping.wait(0.1):
                self._look()
            running = server.status(self._place.workspace.triton)
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
        while True:  # the one that was killed may still be there for a moment
            try:
                server.up(self._place.workspace.triton, self._place.repository)
                return
            except RankyardError:
                time.sleep(0.2)

    def _look(self) -> None:
        self.looks.append(scraped(self._url)["rankyard_runtime_degraded"] == 1)
