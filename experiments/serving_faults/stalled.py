"""The server stands still for a moment every second or so: what hedging does for the slowest answers."""

from __future__ import annotations

import os
import random
import signal
import threading
from functools import partial
from typing import Any

from experiments.report import Row
from experiments.serving_faults.place import Place, loaded
from experiments.turns import in_turns, ratios, row, series

STALL_S = 0.06
EVERY_S = 2.0
ROUNDS = 5
SECONDS = 20.0


def stalled(place: Place, rate: float) -> tuple[list[Row], dict[str, Any]]:
    """Measure a gateway that hedges and one that does not, in turns, while the server stalls."""
    with place.gateway("hedging") as hedging, place.gateway("waiting", hedge_share=0) as waiting:
        staller = Staller(place.still_running().pid)
        staller.start()
        found = in_turns(
            {
                "hedging": partial(loaded, hedging.url, SECONDS, rate),
                "waiting": partial(loaded, waiting.url, SECONDS, rate),
            },
            ROUNDS,
        )
        staller.stopping.set()
        staller.join()
    place.still_running()
    data = f"Triton stands still {STALL_S * 1e3:.0f} ms every {EVERY_S:g} s, {rate:.0f} requests/s"
    more = {"configuration": "gateway on Triton", "seconds": SECONDS, "served_as": "float32"}
    parts = {key: ratios(series(found["hedging"], key), series(found["waiting"], key)) for key in ("p50_ms", "p99_ms")}
    failed = [sum(figures["failed"] for figures in turn) for turn in zip(*found.values(), strict=True)]
    rows = [
        row(data, metric="p99 with hedges, part of that without", values=parts["p99_ms"], **more),
        row(data, metric="p50 with hedges, part of that without", values=parts["p50_ms"], **more),
        row(data, metric="failed requests", values=failed, target=0, at_most=True, **more),
    ]
    return rows, {"rounds": found}


class Staller(threading.Thread):
    """Stops the server's process for a moment again and again, at moments by chance."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._random = random.Random(0)
        self.stopping = threading.Event()

    def run(self) -> None:
        """Stall until told to stop."""
        while not self.stopping.wait(self._random.uniform(0.5, 1.5) * EVERY_S):
            os.kill(self._pid, signal.SIGSTOP)
            self.stopping.wait(STALL_S)
            os.kill(self._pid, signal.SIGCONT)
