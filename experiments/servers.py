"""Servers that studies start, ask and end: processes of their own, measured from outside."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0
_PROBE_S = 0.005


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers; pid: of its first process, which leads a session of its own."""

    url: str
    pid: int
    seconds_to_ready: float

    @property
    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(_rss_bytes(pid) for pid in _session(self.pid))

    @property
    def n_descriptors(self) -> int:
        """Files, sockets and pipes that all its processes hold open."""
        return sum(_n_descriptors(pid) for pid in _session(self.pid))

    @property
    def cpu_s(self) -> float:
        """Seconds of the processor that its living processes have used."""
        return sum(_cpu_s(pid) for pid in _session(self.pid))

    @property
    def loop_cpu_s(self) -> float:
        """Seconds of the processor that its first process' first thread has used: a gateway's event loop."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Let none of its processes run meanwhile."""
        members = _session(self.pid)
        for pid in members:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in members:
                os.kill(pid, signal.SIGCONT)


@contextmanager
def serving(
    command: Sequence[str],
    url: str,
    probe: bytes,
    log: Path,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str],
) -> Iterator[Server]:
    """Start a server, wait until it answers `probe`, a whole HTTP request, with status 200, and end it afterwards."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begin_s = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=cwd, env=os.environ | dict(environment), start_new_session=True
        )
    try:
        while not _answers(url, probe):
            if process.poll() is not None or time.perf_counter() - begin_s > _READY_TIMEOUT_S:
                raise RuntimeError(f"{' '.join(command)} does not answer:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(_PROBE_S)
        yield Server(url, process.pid, time.perf_counter() - begin_s)
    finally:
        _end(process)


@contextmanager
def gateway(
    config: Mapping[str, Any], directory: Path, name: str, *, program: str = "rankyard", tree: Path | None = None
) -> Iterator[Server]:
    """Start `rankyard serve` with a configuration; its files go to `directory`.

    program: another module that serves. tree: another checkout that it comes from.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(dict(config)))
    port = free_port()
    command = [sys.executable, "-m", program, "serve", "--config", str(file), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    probe = b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n"
    environment = {} if tree is None else {"PYTHONPATH": str(tree)}
    with serving(
        [*command, "--workspace", str(directory)],
        url,
        probe,
        directory / f"{name}.log",
        cwd=tree,
        environment=environment,
    ) as server:
        yield server


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def exchange(url: str, request: bytes, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Send one request over a connection of its own; gives status and body. OSError where nobody answers."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=timeout_s) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{url} answers without HTTP: {error!r}") from error


def scraped(url: str) -> dict[str, float]:
    """Give every sample of a gateway's `/metrics`, by its name and labels."""
    _, body = exchange(url, b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
    samples = (line.rpartition(" ") for line in body.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def _answers(url: str, probe: bytes) -> bool:
    try:
        return exchange(url, probe)[0] == 200
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    members = _session(process.pid)
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in members:  # workers that outlive the process that started them
        if pid in _session(process.pid):
            os.kill(pid, signal.SIGKILL)


def _session(pid: int) -> list[int]:
    """Give the processes of the session that `pid` leads."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def _rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _n_descriptors(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
