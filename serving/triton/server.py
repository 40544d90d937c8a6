"""A Triton server on this machine, without a container: the one that `nvidia-pytriton` brings, or one on the path."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from models.errors import UnavailableError, WorkspaceError

_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that was started here: its process and its addresses (HOST:PORT)."""

    pid: int
    http: str
    grpc: str
    metrics: str
    repository: str


@dataclass(frozen=True, slots=True)
class _Binary:
    """What starts a server, with the environment and arguments that this installation needs."""

    path: Path
    environment: dict[str, str]
    arguments: tuple[str, ...] = ()


def up(directory: Path, repository: Path) -> Running:
    """Start a server on free loopback ports and wait until it is live; gives the running one if there is one.

    directory: holds the server's state, backends and log. UnavailableError where no binary is installed, or where it
    ends or stays silent for a minute (the log's last lines are in the message).
    """
    if (running := status(directory)) is not None:
        if Path(running.repository) != repository.absolute():
            raise WorkspaceError(
                f"one server runs in {directory}, it serves {running.repository}; `rankyard triton down` ends it"
            )
        return running
    directory.mkdir(parents=True, exist_ok=True)
    repository.mkdir(parents=True, exist_ok=True)
    binary = _find_binary(directory)
    http, grpc, metrics = _free_ports(3)
    command = [
        str(binary.path),
        *binary.arguments,
        f"--model-repository={repository.absolute()}",
        "--model-control-mode=explicit",
        f"--http-address={_HOST}",
        f"--http-port={http}",
        f"--grpc-address={_HOST}",
        f"--grpc-port={grpc}",
        f"--metrics-address={_HOST}",
        f"--metrics-port={metrics}",
        "--allow-gpu-metrics=false",
        "--exit-timeout-secs=10",
    ]
    log = _log(directory)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command, stdout=output, stderr=output, env=os.environ | binary.environment, start_new_session=True
        )
    running = Running(
        process.pid, f"{_HOST}:{http}", f"{_HOST}:{grpc}", f"{_HOST}:{metrics}", str(repository.absolute())
    )
    _wait_until_live(process, running, log)
    _state(directory).write_text(json.dumps(asdict(running)) + "\n", encoding="utf-8")
    return running


def down(directory: Path) -> bool:
    """End the server that `up` started, waiting for it; False where none ran."""
    running = status(directory)
    _state(directory).unlink(missing_ok=True)
    if running is None:
        return False
    os.kill(running.pid, signal.SIGTERM)
    give_up_at = time.monotonic() + _STOP_TIMEOUT_S
    while _is_ours(running.pid):
        if time.monotonic() > give_up_at:
            os.kill(running.pid, signal.SIGKILL)
        time.sleep(0.05)
    return True


def status(directory: Path) -> Running | None:
    """Give the server that `up` started, where its process still lives."""
    try:
        running = Running(**json.loads(_state(directory).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise WorkspaceError(f"{_state(directory)} must be as `triton up` wrote it, got: {error}; remove it") from error
    return running if _is_ours(running.pid) else None


def is_ready(http: str) -> bool:
    """Whether a server answers on HOST:PORT and is ready."""
    try:
        with urllib.request.urlopen(f"http://{http}/v2/health/ready", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def log_tail(directory: Path, n_lines: int = 5) -> str:
    """Last lines of the server's log."""
    lines = _log(directory).read_text(encoding="utf-8", errors="replace").splitlines()
    return (
        " | ".join(line for line in lines if line.strip())[-2000:]
        if len(lines) <= n_lines
        else " | ".join(lines[-n_lines:])
    )


def _find_binary(directory: Path) -> _Binary:
    """Find `tritonserver`: on the path (a container's own installation), or in the wheel of nvidia-pytriton."""
    if (installed := shutil.which("tritonserver")) is not None:
        return _Binary(Path(installed), {})
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(
            "a Triton server needs the program tritonserver, none is on the path; "
            "pip install 'rankyard[triton]', or run this in an nvcr.io/nvidia/tritonserver container"
        )
    package = Path(spec.submodule_search_locations[0])
    site_packages = package.parent
    libraries = [sysconfig.get_config_var("LIBDIR"), str(site_packages / "nvidia_pytriton.libs")]
    environment = {
        # The backend's interpreter ignores PYTHONPATH; it looks for its packages where the first python3 on the path does.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": ":".join(filter(None, [*libraries, os.environ.get("LD_LIBRARY_PATH")])),
        "PYTHONHOME": sys.base_prefix,
    }
    backends = _write_backends(package / "tritonserver", directory / "backends")
    return _Binary(package / "tritonserver" / "bin" / "tritonserver", environment, (f"--backend-directory={backends}",))


def _write_backends(tritonserver: Path, backends: Path) -> Path:
    """Lay the wheel's Python backend and its stub for this Python side by side, as the server wants them."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = tritonserver / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise UnavailableError(
            f"nvidia-pytriton must bring a backend for Python {version}, it has none; use 3.8 to 3.12"
        )
    target = backends / "python"
    shutil.copytree(tritonserver / "backends" / "python", target, dirs_exist_ok=True)
    copied = Path(shutil.copy2(stub, target / stub.name))
    copied.chmod(copied.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return backends


def _wait_until_live(process: subprocess.Popen[bytes], running: Running, log: Path) -> None:
    give_up_at = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if is_ready(running.http):
            return
        if process.poll() is not None:
            raise UnavailableError(
                f"Triton must stay up, it ended with status {process.returncode}; {log} says: {log_tail(log.parent)}"
            )
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise UnavailableError(
        f"Triton must be ready within {_READY_TIMEOUT_S:.0f} s, it was not; {log} says: {log_tail(log.parent)}"
    )


def _is_ours(pid: int) -> bool:
    """Whether the process lives and is a Triton server: ids are used again, and a stranger is never ended."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass  # started by an earlier command: not our child, still our server
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return b"tritonserver" in command and state != "Z"


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; held together while they are chosen, so that all differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((_HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _state(directory: Path) -> Path:
    return directory / "server.json"


def _log(directory: Path) -> Path:
    return directory / "server.log"
