"""A Triton server of this machine's own, without a container: started, found again, ended."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from models.errors import RankyardError, UnavailableError, WorkspaceError
from serving.triton.binary import find_binary
from serving.triton.http import TritonHttp

_READY_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 10
_STOP_TIMEOUT_S = 30.0
_HOST = "127.0.0.1"
_USUAL_PORTS = (8000, 8001, 8002)
_PORTS = "ports.json"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that was started here: its process, its addresses (HOST:PORT) and its model repository."""

    pid: int
    http: str
    grpc: str
    metrics: str
    repository: str


def up(directory: Path, repository: Path) -> Running:
    """Start a server on this machine alone and wait until it is ready; gives the running one if there is one.

    It takes the ports of the server before, or Triton's usual ones (8000, 8001, 8002), where all three are free, other
    ones otherwise. Several processes
    may call this at once: all get the same server. directory: holds the server's state, backends and log.
    UnavailableError where no server is installed, or where it ends or stays silent for a minute (the message has the
    end of its log); WorkspaceError where the one that runs serves another repository.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        repository.mkdir(parents=True, exist_ok=True)
        with _lock(directory):
            running = status(directory)
            if running is None:
                _end_what_was_started(directory)
                return _start(directory, repository.absolute())
            if Path(running.repository) != repository.absolute():
                raise WorkspaceError(
                    f"one server at a time runs in {directory}, it serves {running.repository}; end it with "
                    "`rankyard triton down`"
                )
            _wait_until_ready(directory, running)
            return running
    except OSError as error:
        why = (
            error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        )  # many files, the first says it
        raise WorkspaceError(
            f"a Triton server must have a directory that can be written, got {error.filename or directory} "
            f"({why}); name another --workspace or --repository"
        ) from error


def down(directory: Path) -> bool:
    """End the server that `up` started and wait for it; False where none ran."""
    if not _state(directory).exists():
        return False
    with _lock(directory):
        running = status(directory)
        _end_what_was_started(directory)
        return running is not None


def status(directory: Path) -> Running | None:
    """Give the server that `up` started, where its process still lives."""
    started = _started(directory)
    return started if started is not None and _lives(started) else None


def _started(directory: Path) -> Running | None:
    try:
        return Running(**json.loads(_state(directory).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise WorkspaceError(f"{_state(directory)} must be as `triton up` wrote it, got: {error}; remove it") from error


def _end_what_was_started(directory: Path) -> None:
    """End the server, and what it left behind where it was killed; forget it."""
    started = _started(directory)
    if started is not None:
        _end(started)
        _state(directory).unlink(missing_ok=True)


def is_ready(http: str) -> bool:
    """Whether a server on HOST:PORT takes requests; its models may come and go."""
    try:
        TritonHttp(http, timeout_s=2).expect_live()
    except RankyardError:
        return False
    return True


def _start(directory: Path, repository: Path) -> Running:
    binary = find_binary(directory)
    ports = _ports(_ports_before(directory)) or _ports(_USUAL_PORTS) or _ports((0, 0, 0))
    if ports is None:
        raise UnavailableError(f"a Triton server needs three free ports on {_HOST}, none were found; end a program")
    http, grpc, metrics = ports
    command = [
        str(binary.path),
        *binary.arguments,
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        "--load-model=*",  # a server that is started again serves what was deployed before
        "--exit-on-error=false",  # one version that cannot be loaded must not keep the others away
        "--disable-auto-complete-config",
        "--strict-readiness=false",  # one version that could not be loaded would make it unready for good
        f"--http-address={_HOST}",
        _http_port(http),
        f"--grpc-address={_HOST}",
        f"--grpc-port={grpc}",
        f"--metrics-address={_HOST}",
        f"--metrics-port={metrics}",
        "--allow-gpu-metrics=false",
        f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
    ]
    log = (str(_log(directory)), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        pid = os.posix_spawn(
            binary.path,
            command,
            os.environ | binary.environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, *log),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,  # Ctrl-C is for the command, which ends the server itself where it must
        )
    except OSError as error:
        raise UnavailableError(
            f"a Triton server must be a program that can be started, {binary.path} cannot ({error.strerror}); "
            "install rankyard[triton] again"
        ) from error
    running = Running(pid, f"{_HOST}:{http}", f"{_HOST}:{grpc}", f"{_HOST}:{metrics}", str(repository))
    try:
        _write(_state(directory), asdict(running))
        _write(directory / _PORTS, ports)
        _wait_until_ready(directory, running)
    except BaseException:
        _end(running)
        _state(directory).unlink(missing_ok=True)
        raise
    return running


def _end(running: Running) -> None:
    give_up_at = time.monotonic() + _STOP_TIMEOUT_S
    with suppress(ProcessLookupError):
        if _lives(running):
            os.kill(running.pid, signal.SIGTERM)
        while _lives(running):
            if time.monotonic() > give_up_at:
                os.kill(running.pid, signal.SIGKILL)
            time.sleep(0.05)
    while instances := list(_instances(running)):
        for pid in instances:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _instances(running: Running) -> Iterator[int]:
    """Processes of models that a server left: those of a killed one wait for ever where it died holding their lock."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            session = int((process / "stat").read_text().rpartition(")")[2].split()[3])
            if session == running.pid and b"triton_python_backend_stub" in (process / "cmdline").read_bytes():
                yield int(process.name)


def _wait_until_ready(directory: Path, running: Running) -> None:
    give_up_at = time.monotonic() + _READY_TIMEOUT_S
    while not is_ready(running.http):
        problem = None
        if not _lives(running):
            problem = "stay up, it has ended"
        elif time.monotonic() > give_up_at:
            problem = f"be ready within {_READY_TIMEOUT_S:.0f} s, it was not"
        if problem is not None:
            log = _log(directory)
            raise UnavailableError(f"a Triton server must {problem}; {log} says: {_tail(log)}")
        time.sleep(0.05)


def _tail(log: Path) -> str:
    """The last errors of a log, or its last lines where it has none, on one line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E", "error", "F"))]
    return " | ".join((errors or lines)[-3:])[-1000:] or "nothing"


def _lives(running: Running) -> bool:
    """Whether the process lives and is this very server: ids are used again, and a stranger is never ended."""
    with suppress(ChildProcessError):  # started by an earlier command: not our child, still our server
        # A child is known by its id alone: its command line is empty for a moment after its start.
        return os.waitpid(running.pid, os.WNOHANG)[0] != running.pid
    try:
        command = Path(f"/proc/{running.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    # A process that has ended but was not waited for has an empty command line.
    return _http_port(int(running.http.rpartition(":")[2])).encode() in command


def _http_port(port: int) -> str:
    return f"--http-port={port}"


def _ports(wanted: Sequence[int]) -> tuple[int, ...] | None:
    """Give these ports where all are free (0: any free one), None otherwise; all are held until all are known."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in wanted]
        try:
            for one, port in zip(sockets, wanted, strict=True):
                # Connections of an earlier server that are about to close do not matter.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((_HOST, port))
        except OSError:
            return None
        return tuple(int(one.getsockname()[1]) for one in sockets)


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Wait until nobody else starts or ends the server of `directory`."""
    with (directory / "server.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _ports_before(directory: Path) -> tuple[int, ...]:
    """The ports of the server before: gateways ask there, and come back when it does. The usual ones without any."""
    try:
        http, grpc, metrics = map(int, json.loads((directory / _PORTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _USUAL_PORTS
    return http, grpc, metrics


def _write(file: Path, content: object) -> None:
    aside = file.with_name(f".{file.name}")
    aside.write_text(json.dumps(content) + "\n", encoding="utf-8")
    aside.replace(file)


def _state(directory: Path) -> Path:
    return directory / "server.json"


def _log(directory: Path) -> Path:
    return directory / "server.log"
