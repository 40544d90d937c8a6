"""What the load generator itself costs, against a server that does nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments import loops
from experiments.servers import free_port, serving
from experiments.serving_limit.study import Part, Study
from experiments.turns import in_turns, medians, row

_TRIVIAL = Path(__file__).parent / "trivial_server.py"


def load_itself(study: Study) -> Part:
    """Requests a second that it can make, and microseconds of the processor for each."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(_TRIVIAL), str(port)]
    probe = b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
    with serving(command, url, probe, study.workspace / "trivial.log", environment={}):
        sent = study.queries(url)
        found = in_turns({f"{n} callers": lambda n=n: study.closed(url, sent, n) for n in (1, 32)}, study.repetitions)
    costs = [1e6 * one["client_cpu_share"] / one["throughput_per_s"] for one in found["32 callers"]]
    rates = [one["throughput_per_s"] for one in found["32 callers"]]
    rows = [
        row("load generator", "rankyard bench", "requests/s against a server that does nothing", rates, served_as="-"),
        row("load generator", "rankyard bench", "us of the processor a request", costs, served_as="-"),
    ]
    return Part(rows, {"medians": medians(found, loops.KEYS)})
